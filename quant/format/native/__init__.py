"""The search for the scales of ggml's blocks, compiled: see `_blocks.pyi`."""
