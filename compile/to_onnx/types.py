"""Which form each weight takes in the graph, decided from headers alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from compile.onnx_bytes import FP8
from quant.format.errors import UnsupportedModelError
from quant.format.scheme import (
    ActivationScheme,
    CodebookScheme,
    FloatScheme,
    IntScheme,
    PerChannel,
    PerGroup,
    Scheme,
)

TypeName = Literal["auto", "fp32", "fp16", "fp8", "int4", "int8"]
TYPE_NAMES: tuple[TypeName, ...] = ("auto", "fp32", "fp16", "fp8", "int4", "int8")
BITS: Mapping[str, int] = {"int4": 4, "int8": 8}
SMALLEST_GROUP, LARGEST_GROUP = 16, 256
"""Groups that ONNX Runtime multiplies as integers; 512 silently gave zeros in some versions."""
NEW_GROUPS = (32, 16)
"""Of weights that are rounded to int4 here: the first that divides the columns."""

Role = Literal["table", "head", "linear", "plain"]
"""table: looked up by token, and perhaps the head too. plain: never rounded to integers here, as
routers and norms."""


@dataclass(frozen=True)
class Form:
    """How a weight is stored. dtype: of its elements. group: input columns that share a scale, 0
    for a whole row; None for floats. zero_points: whether the scheme has them. gathered: its rows
    are looked up by token. ordered: columns of a group are scattered (desc_act), so that they are
    stored in the order of their groups, and the input is brought into that order first. rounded:
    its integers are made here, and are not the checkpoint's. inputs: how the graph rounds what the
    weight is multiplied by, None for not at all."""

    dtype: str
    reason: str
    group: int | None = None
    zero_points: bool = False
    gathered: bool = False
    ordered: bool = False
    rounded: bool = False
    inputs: ActivationScheme | None = None


def choose_form(
    name: str,
    scheme: Scheme,
    shape: tuple[int, ...],
    type_name: TypeName,
    role: Role,
    round_floats: bool = False,
) -> Form:
    """round_floats: whether `int4` and `int8` are to round floats as well.

    Raises UnsupportedModelError naming the tensor, and what to do instead.
    """
    if type_name == "fp32":
        return Form("float32", "its exact value, as asked")
    if type_name == "fp16" and len(shape) == 2 and scheme != FloatScheme("float16"):
        return Form("float16", "rounded, as asked")
    asked = type_name if type_name in BITS and role != "plain" else None
    if isinstance(scheme, FloatScheme):
        if asked is not None and round_floats:
            return _rounded(asked, shape, role)
        return Form(scheme.dtype, "as stored")
    if type_name == "fp8" and isinstance(scheme, CodebookScheme) and role != "table":
        return _same_floats(name, scheme, shape[1])
    problem = _problem(scheme, shape[1])
    if asked is not None and (problem or scheme.num_bits > _bits(asked, role)):
        return _rounded(asked, shape, role)
    if problem is not None or not isinstance(scheme, IntScheme):
        raise UnsupportedModelError(
            f"tensor {name} is stored as {scheme}, and {problem}; use --target onnx:fp32, which "
            "keeps its exact values as floats, or onnx:int8, which rounds it again"
            f"{', or onnx:fp8' if _is_fp8(scheme) else ''}"
        )
    return _same_integers(scheme, shape[1], asked, role)


def _same_integers(scheme: IntScheme, columns: int, asked: str | None, role: Role) -> Form:
    group, zero_points = _group(scheme, columns), not scheme.symmetric
    if role == "table":
        reason = "the same integers; ONNX looks up none of 4 bits"
        return Form("int8", reason, group, zero_points, gathered=True)
    dtype = asked or ("int4" if scheme.num_bits <= BITS["int4"] else "int8")
    wider = dtype == "int8" and scheme.num_bits <= BITS["int4"]
    reason = "the same integers, in a byte each, as asked" if wider else "the same integers"
    return Form(dtype, reason, group, zero_points)


def _is_fp8(scheme: Scheme) -> bool:
    return isinstance(scheme, CodebookScheme) and scheme.codebook == "e4m3"


def _same_floats(name: str, scheme: CodebookScheme, columns: int) -> Form:
    """FP8 as it is stored. A scale of a block of rows becomes one for each of its rows, because
    DequantizeLinear has scales along one axis."""
    size = scheme.group_size(columns)
    group = 0 if size >= columns else size
    if not _is_fp8(scheme) or (group and columns % group):
        raise UnsupportedModelError(
            f"tensor {name} is stored as {scheme}, and onnx:fp8 holds E4M3 numbers whose groups "
            "divide the columns; use --target onnx:fp32, which keeps its exact values as floats"
        )
    return Form(FP8, "the same FP8 numbers", group)


def _rounded(asked: str, shape: tuple[int, ...], role: Role) -> Form:
    """Tables and heads cost most where they are coarse, and are never below 8 bits."""
    if _bits(asked, role) == BITS["int8"]:
        reason = "rounded to 8 bits, a scale for each row, as asked"
        return Form("int8", reason, 0, gathered=role == "table", rounded=True)
    group = next((size for size in NEW_GROUPS if shape[1] % size == 0), 0)
    reason = f"rounded to 4 bits with zero points, groups of {group or shape[1]}, as asked"
    return Form("int4", reason, group, zero_points=True, rounded=True)


def _bits(asked: str, role: Role) -> int:
    return BITS["int8"] if role in ("table", "head") else BITS[asked]


def stored_scheme(form: Form) -> IntScheme:
    """Of a form of integers."""
    grain = PerGroup(form.group) if form.group else PerChannel()
    return IntScheme(BITS[form.dtype], not form.zero_points, grain)


def _problem(scheme: Scheme, columns: int) -> str | None:
    """Why its integers cannot stand in the graph as they are, None where they can."""
    if not isinstance(scheme, IntScheme) or scheme.num_bits > BITS["int8"]:
        return "ONNX files of coldpress hold integers of up to 8 bits"
    if scheme.ggml_type is not None and not scheme.symmetric:
        return "ONNX has no place for the minimum of a group"
    size = _group(scheme, columns)
    if size and not (SMALLEST_GROUP <= size <= LARGEST_GROUP and size & (size - 1) == 0):
        return "ONNX Runtime multiplies groups of 16, 32, 64, 128 or 256"
    if size and columns % size:
        return f"{size} does not divide its {columns} columns"
    return None


def _group(scheme: IntScheme, columns: int) -> int:
    """Columns that share a scale, 0 for the whole row."""
    is_group = isinstance(scheme.granularity, PerGroup) and scheme.group_size(columns) < columns
    return scheme.group_size(columns) if is_group else 0
