"""bfloat16 in Triton's interpreter, which holds its bits as integers: casts integers to it and
multiplies matrices of it as if those were its numbers, and cuts off what a GPU rounds."""

from typing import Any

import ml_dtypes
import numpy as np


def mend_bfloat16() -> None:
    """From now on, in this process."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder: Any = interpreter.InterpreterBuilder
    plain_dot, plain_cast = builder.create_dot, builder.cast_impl
    if getattr(plain_dot, "is_mended", False):
        return

    def wide(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        numbers = (operand.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(numbers, tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain_dot(self, wide(a), wide(b), *rest)

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        if to.scalar != tl.bfloat16:
            return plain_cast(self, wide(source), to)
        numbers = wide(source).data.astype(np.float32).astype(ml_dtypes.bfloat16)
        return interpreter.TensorHandle(numbers.view(np.uint16), tl.bfloat16)

    create_dot.is_mended = True  # type: ignore[attr-defined]
    builder.create_dot, builder.cast_impl = create_dot, cast_impl
