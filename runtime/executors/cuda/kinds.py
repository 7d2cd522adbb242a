"""Which kernel takes a weight as it is stored."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from compile.input_rounding import input_rounding
from quant.format.errors import UnsupportedModelError
from quant.format.scheme import IntScheme, PerBlock, PerChannel, PerGroup, PerTensor
from quant.format.tensor import QuantizedTensor
from runtime.kernels.triton.rounded import Numbers

GROUPS = (16, 32, 64, 128, 256)
"""Group sizes that the kernels take."""
ROUNDED_GROUPS = (32, 64, 128)
"""Of products whose inputs are rounded in groups as well, e.g. FP8 in blocks of 128 x 128."""
WHOLE_ROW_GROUP = 128
"""A row under one scale is cut into groups of this size, which all have it."""


def can_be_packed(weight: QuantizedTensor) -> bool:
    """Integers in groups that the kernels know; scattered ones must all be full."""
    if not isinstance(weight.scheme, IntScheme):
        return False
    if weight.group_index is not None:
        columns = np.bincount(weight.group_index, minlength=weight.scale.shape[1])
        if set(columns.tolist()) != {group_size(weight)}:
            return False
    held = weight.minimum is None or weight.scheme.num_bits < 8
    return held and group_size(weight) in GROUPS


def one_order(weights: Sequence[QuantizedTensor]) -> bool:
    """Whether the groups of all weights have the same columns."""
    if all(weight.group_index is None for weight in weights):
        return True
    first = weights[0].column_groups()
    return all(np.array_equal(first, weight.column_groups()) for weight in weights)


def column_order(weight: QuantizedTensor) -> npt.NDArray[np.int64] | None:
    """int64 [in]: columns by group; None where they lie so already."""
    if weight.group_index is None:
        return None
    return np.argsort(weight.group_index, kind="stable").astype(np.int64)


def group_size(weight: QuantizedTensor) -> int:
    whole = isinstance(weight.scheme.granularity, PerChannel | PerTensor)
    return WHOLE_ROW_GROUP if whole else weight.scheme.group_size(weight.shape[1])


def whole_rows_of_8_bits(weight: QuantizedTensor) -> bool:
    """What the product of rounded rows takes as it is."""
    whole = isinstance(weight.scheme.granularity, PerChannel | PerTensor)
    return whole and weight.scheme.num_bits == 8 and weight.scheme.symmetric


def numbers_per_token(name: str, weight: QuantizedTensor) -> Numbers:
    """What inputs are rounded to, with one scale per token made as they come.

    Raises UnsupportedModelError for any other way.
    """
    rounding = input_rounding(name, weight)
    assert rounding is not None
    if rounding.fixed is not None or rounding.group or rounding.numbers == "e2m1":
        raise _unsupported(name, weight)
    return rounding.numbers


def rounded_group(name: str, weight: QuantizedTensor) -> int | None:
    """The columns under one scale, where both sides are the same 8-bit numbers in such groups."""
    rounding, scheme = input_rounding(name, weight), weight.scheme
    assert rounding is not None
    own = "int8" if isinstance(scheme, IntScheme) else scheme.codebook
    alike = own == rounding.numbers and scheme.num_bits == 8 and scheme.symmetric
    made = rounding.fixed is None and rounding.scales == "float"
    plain = weight.group_index is None and isinstance(scheme.granularity, PerGroup | PerBlock)
    size = scheme.group_size(weight.shape[1])
    fits = size == rounding.group and size in ROUNDED_GROUPS
    return size if alike and made and plain and fits else None


def check_rounded(name: str, weight: QuantizedTensor) -> None:
    """Both sides of the product are the same numbers, and every row has one scale."""
    numbers, scheme = numbers_per_token(name, weight), weight.scheme
    own = "int8" if isinstance(scheme, IntScheme) else scheme.codebook
    if own != numbers or not whole_rows_of_8_bits(weight):
        raise _unsupported(name, weight)


def _unsupported(name: str, weight: QuantizedTensor) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"tensor {name} is stored as {weight.scheme}, which the cuda backend does not multiply; it "
        "rounds inputs per token to int8 or e4m3, for integers in groups or for weights of the "
        "same 8-bit numbers with a scale per row, or both in the same groups of 32 to 128: use "
        "--backend torch"
    )
