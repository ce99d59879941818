"""Weights that others trained, as runs of our own: one module for each kind of model."""
