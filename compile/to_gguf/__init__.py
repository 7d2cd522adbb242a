"""Carries a Program in a GGUF file."""
