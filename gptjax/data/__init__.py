"""Texts, pairs and recordings as batches that are pure functions of (seed, step)."""
