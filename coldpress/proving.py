"""Verification with logits: the executors that `compile` may not import are handed to it here."""
