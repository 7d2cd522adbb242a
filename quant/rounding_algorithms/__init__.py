"""Rounding algorithms: pure functions from (weight, statistics, scheme) to stored numbers."""
