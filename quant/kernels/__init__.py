"""The loops of rounding that visit columns one by one, compiled, and the sums of products of
bfloat16 numbers: see `_rounding.pyi` and `_moments.pyi`."""
