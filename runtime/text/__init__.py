"""Tokenizer, incremental detokenizer, chat template and stop strings."""
