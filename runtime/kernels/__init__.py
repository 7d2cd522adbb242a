"""Native and Triton kernels: no policy of any kind."""
