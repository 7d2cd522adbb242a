"""Guesses at the next tokens of an answer, which one step can check together."""
