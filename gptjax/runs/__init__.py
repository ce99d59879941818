"""The run directory: checkpoints, resuming, metrics and plots."""
