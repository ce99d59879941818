"""Texts, pairs and speech as batches that are pure functions of (seed, step)."""
