"""To and from other formats: Hugging Face, Whisper, StableHLO."""
