"""C++ kernels behind nanobind."""
