"""Arrays of 4 and 8 bits that stand in for float32 parameters."""
