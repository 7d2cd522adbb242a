"""How numbers lie on disk: schemes, rounding, packing, and reading and writing checkpoints."""
