"""Checkpoints of other libraries, in and out: GPT-2 and Whisper of Hugging Face, StableHLO."""
