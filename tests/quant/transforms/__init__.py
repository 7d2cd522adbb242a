"""Tests of quant.transforms."""
