"""Which form each weight takes in the graph, decided from headers alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from quant.format.errors import InputError, UnsupportedModelError
from quant.format.scheme import FloatScheme, IntScheme, PerGroup, Scheme

TypeName = Literal["auto", "fp32", "fp16", "int4", "int8"]
TYPE_NAMES: tuple[TypeName, ...] = ("auto", "fp32", "fp16", "int4", "int8")
INT4_BITS = 4
LARGEST_BITS = 8
SMALLEST_GROUP, LARGEST_GROUP = 16, 256
"""Groups that ONNX Runtime multiplies as integers; 512 silently gave zeros in some versions."""


@dataclass(frozen=True)
class Form:
    """How a weight is stored. dtype: of its elements. group: input columns that share a scale, 0
    for a whole row; None for floats. zero_points: whether the scheme has them. gathered: its rows
    are looked up by token. ordered: columns of a group are scattered (desc_act), so that they are
    stored in the order of their groups, and the input is brought into that order first."""

    dtype: str
    reason: str
    group: int | None = None
    zero_points: bool = False
    gathered: bool = False
    ordered: bool = False


def choose_form(
    name: str, scheme: Scheme, shape: tuple[int, ...], type_name: TypeName, gathered: bool
) -> Form:
    """Raises UnsupportedModelError naming the tensor, and what to do instead."""
    if type_name == "fp32":
        return Form("float32", "its exact value, as asked")
    if type_name == "fp16" and len(shape) == 2 and scheme != FloatScheme("float16"):
        return Form("float16", "rounded, as asked")
    if isinstance(scheme, FloatScheme):
        return Form(scheme.dtype, "as stored")
    if not isinstance(scheme, IntScheme) or scheme.num_bits > LARGEST_BITS:
        raise _unfit(name, scheme, "ONNX files of coldpress hold integers of up to 8 bits")
    if scheme.ggml_type is not None and not scheme.symmetric:
        raise _unfit(name, scheme, "ONNX has no place for the minimum of a group")
    group = _group(name, scheme, shape[1])
    if gathered:
        reason = "the same integers; ONNX looks up none of 4 bits"
        return Form("int8", reason, group, not scheme.symmetric, gathered=True)
    dtype = "int4" if scheme.num_bits <= INT4_BITS else "int8"
    return Form(dtype, "the same integers", group, not scheme.symmetric)


def _group(name: str, scheme: IntScheme, columns: int) -> int:
    if not isinstance(scheme.granularity, PerGroup) or scheme.group_size(columns) >= columns:
        return 0
    size = scheme.granularity.size
    is_power = size & (size - 1) == 0
    if not (SMALLEST_GROUP <= size <= LARGEST_GROUP and is_power):
        raise _unfit(name, scheme, "ONNX Runtime multiplies groups of 16, 32, 64, 128 or 256")
    if columns % size:
        raise _unfit(name, scheme, f"{size} does not divide its {columns} columns")
    return size


def _unfit(name: str, scheme: Scheme, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"tensor {name} is stored as {scheme}, and {why}; use --target onnx:fp32, which keeps its "
        "exact values as floats, or quantize it in another way"
    )


def require_integers(type_name: TypeName, forms: Mapping[str, Form]) -> None:
    """Raises InputError where `int4` or `int8` was asked for and the checkpoint has no such
    integers: a build rounds nothing."""
    if type_name not in ("int4", "int8"):
        return
    quantized = {
        name: form.dtype
        for name, form in forms.items()
        if form.group is not None and not form.gathered
    }
    if not quantized:
        raise InputError(
            f"onnx:{type_name} keeps a checkpoint's integers and this one has none; quantize it "
            "first: coldpress quantize MODEL -o DIR --recipe NAME"
        )
    other = next((name for name, dtype in quantized.items() if dtype != type_name), None)
    if other is not None:
        raise InputError(
            f"onnx:{type_name} keeps a checkpoint's integers and tensor {other} is "
            f"{quantized[other]}; use --target onnx, which takes each weight as it is"
        )
