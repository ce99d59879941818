"""Weights of 8 bits and fewer: the arrays, fine-tuning with them, and a card of what they cost."""
