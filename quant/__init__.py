"""Which numbers to store: statistics, rounding algorithms and the layer loop."""
