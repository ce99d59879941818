"""From logits to tokens: sampling, beam search, transcription, alignment."""
