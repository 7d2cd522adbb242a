"""Tests mirror the tree of the product; `tests.tiny` makes their checkpoints."""
