"""Devices, meshes, sharding rules, processes and memory."""
