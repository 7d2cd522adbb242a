"""Triton kernels: matrix products of stored integers, norms, rotary embedding, paged attention.

Every kernel also runs on a CPU, in Triton's interpreter (TRITON_INTERPRET=1 before the import).
"""

import os

# Unset, Triton warns at the first compilation; products are meant to be added in one rounding.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
