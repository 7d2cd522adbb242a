"""Transforms that keep a model's function and leave it easier to round."""
