"""NVIDIA Triton: a model repository around an artifact."""
