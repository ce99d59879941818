"""Weights of 4 and 8 bits: the arrays, fine-tuning with them, and a card of what they cost."""
