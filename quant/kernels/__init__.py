"""The loops of rounding that visit columns one by one, compiled: see `_rounding.pyi`."""
