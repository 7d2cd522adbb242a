"""Schemes: number format + granularity + symmetry, and how the layer's input is rounded."""

from dataclasses import dataclass
from typing import Literal

Codebook = Literal["e4m3", "e2m1", "iq4_nl"]
"""Values that codes stand for: 8-bit floats, 4-bit floats, or the 16 levels of ggml's IQ4_NL."""


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True)
class PerChannel:
    """One scale for each output row."""


@dataclass(frozen=True)
class PerToken:
    """One scale for each token: activations only."""


@dataclass(frozen=True)
class PerGroup:
    """One scale for each `size` consecutive input columns of an output row, or of a token."""

    size: int


@dataclass(frozen=True)
class PerBlock:
    """One scale for each `rows` x `columns` rectangle; those at the edges may be smaller."""

    rows: int
    columns: int


Granularity = PerTensor | PerChannel | PerGroup | PerBlock


@dataclass(frozen=True)
class ActivationScheme:
    """How a linear's input is rounded when it runs: symmetric, to nearest.

    dynamic: the scale is made from the input itself as it comes; otherwise it is stored with the
    weight as `input_scale`. NVFP4 has both: a stored global scale and dynamic ones per group.
    """

    numbers: Literal["int8", "e4m3", "e2m1"]
    granularity: PerTensor | PerToken | PerGroup = PerToken()
    dynamic: bool = True

    def __str__(self) -> str:
        kind = "dynamic" if self.dynamic else "static"
        grain = {PerTensor: "tensor", PerToken: "token"}.get(type(self.granularity), "")
        if isinstance(self.granularity, PerGroup):
            grain = f"g{self.granularity.size}"
        return f"{self.numbers}-{kind}-{grain}"


@dataclass(frozen=True)
class IntScheme:
    """Integers of `num_bits`, worth `(code - zero_point) * scale`.

    A symmetric scheme has no zero points. Codes are signed: `qmin <= code <= qmax`.

    ggml_type: the block type of ggml, e.g. "Q4_K", whose nested scales these are: then a group's
    scale (and minimum, where it has one) is a small integer times a float16 of a larger block.
    """

    num_bits: int
    symmetric: bool
    granularity: PerTensor | PerChannel | PerGroup
    activation: ActivationScheme | None = None
    ggml_type: str | None = None

    @property
    def qmin(self) -> int:
        return -(1 << (self.num_bits - 1))

    @property
    def qmax(self) -> int:
        return (1 << (self.num_bits - 1)) - 1

    def group_size(self, in_features: int) -> int:
        """Columns that share a scale; the whole row when the granularity is per channel."""
        return _group_size(self.granularity, in_features)

    def groups(self, in_features: int) -> int:
        """Scales per row; the last group is short when the size does not divide the row."""
        return -(-in_features // self.group_size(in_features))

    def __str__(self) -> str:
        if self.ggml_type is not None:
            return self.ggml_type
        symmetry = "sym" if self.symmetric else "asym"
        name = f"int{self.num_bits}-{symmetry}-{_grain(self.granularity)}"
        return _with_activation(name, self.activation)


@dataclass(frozen=True)
class CodebookScheme:
    """Codes that stand for the values of a codebook, worth `value(code) * scale`.

    scales: what a scale is stored as. "float": float32 or 16 bit. "e8m0": powers of two (MX
    formats). "e4m3": 8-bit floats under one float32 `global_scale` per tensor (NVFP4).
    ggml_type: as for IntScheme, e.g. "IQ4_XS".
    """

    codebook: Codebook
    granularity: Granularity
    scales: Literal["float", "e8m0", "e4m3"] = "float"
    activation: ActivationScheme | None = None
    ggml_type: str | None = None

    @property
    def num_bits(self) -> int:
        return 8 if self.codebook == "e4m3" else 4

    @property
    def symmetric(self) -> bool:
        """Always: no zero points."""
        return True

    def group_size(self, in_features: int) -> int:
        """Columns that share a scale."""
        return _group_size(self.granularity, in_features)

    def groups(self, in_features: int) -> int:
        """Scales per row of scales; the last group may be short."""
        return -(-in_features // self.group_size(in_features))

    def __str__(self) -> str:
        if self.ggml_type is not None:
            return self.ggml_type
        names = {("e2m1", "e4m3"): "nvfp4", ("e2m1", "e8m0"): "mxfp4", ("e4m3", "e8m0"): "mxfp8"}
        name = names.get((self.codebook, self.scales))
        if name is None or not isinstance(self.granularity, PerGroup):
            number = "fp8" if self.codebook == "e4m3" else self.codebook
            name = f"{number}-{_grain(self.granularity)}"
        return _with_activation(name, self.activation)


@dataclass(frozen=True)
class FloatScheme:
    """Floating-point numbers as they are."""

    dtype: Literal["float32", "float16", "bfloat16"]

    @property
    def num_bits(self) -> int:
        return 32 if self.dtype == "float32" else 16

    def __str__(self) -> str:
        return self.dtype


QuantizedScheme = IntScheme | CodebookScheme
"""How codes are stored; both kinds have num_bits, symmetric, granularity, activation, group_size
and groups."""
Scheme = IntScheme | CodebookScheme | FloatScheme


def scale_shape(scheme: QuantizedScheme, shape: tuple[int, ...]) -> tuple[int, int]:
    """Shape of the scales of a weight [out, in] in canonical form: [rows of scales, groups]."""
    rows, columns = shape
    groups = scheme.groups(columns)
    match scheme.granularity:
        case PerTensor():
            return 1, 1
        case PerBlock(height, _):
            return -(-rows // height), groups
        case _:
            return rows, groups


def _group_size(granularity: Granularity, in_features: int) -> int:
    if isinstance(granularity, PerGroup):
        return granularity.size
    return granularity.columns if isinstance(granularity, PerBlock) else in_features


def _grain(granularity: Granularity) -> str:
    match granularity:
        case PerGroup(size):
            return f"g{size}"
        case PerBlock(rows, columns):
            return f"block{rows}x{columns}"
        case PerTensor():
            return "tensor"
        case PerChannel():
            return "channel"


def _with_activation(name: str, activation: ActivationScheme | None) -> str:
    return name if activation is None else f"{name}+{activation}"
