"""Triton kernels: matrix products of stored integers, norms, rotary embedding, paged attention.

Every kernel also runs on a CPU, in Triton's interpreter (TRITON_INTERPRET=1 before the import).
"""
