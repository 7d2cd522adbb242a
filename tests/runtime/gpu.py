"""Where kernels are tested: compiled on a GPU, else in Triton's interpreter on the CPU.

Imported before any kernel: Triton decides when a kernel is defined.
"""

import os

import torch

from benchmarks.on_gpu.interpreting import mend_bfloat16

COMPILED = torch.cuda.is_available()
if not COMPILED:
    os.environ["TRITON_INTERPRET"] = "1"
    mend_bfloat16()
DEVICE = torch.device("cuda" if COMPILED else "cpu")

FLOAT32_STEP = 2.0**-24


def sum_bound(terms: torch.Tensor, length: int) -> torch.Tensor:
    """How far a float32 sum of `length` products may be from the exact one, whatever its order:
    (length + 4) half steps of the sum of magnitudes `terms` (Higham 2002, section 3.1; four more
    for the scales and the bias)."""
    return (length + 4) * FLOAT32_STEP * terms + 1e-30
