"""Schemes: number format + granularity + symmetry."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PerChannel:
    """One scale for each output row."""


@dataclass(frozen=True)
class PerGroup:
    """One scale for each `size` consecutive input columns of an output row."""

    size: int


Granularity = PerChannel | PerGroup


@dataclass(frozen=True)
class IntScheme:
    """Integers of `num_bits`, worth `(code - zero_point) * scale`.

    A symmetric scheme has no zero points. Codes are signed: `qmin <= code <= qmax`.
    """

    num_bits: int
    symmetric: bool
    granularity: Granularity

    @property
    def qmin(self) -> int:
        return -(1 << (self.num_bits - 1))

    @property
    def qmax(self) -> int:
        return (1 << (self.num_bits - 1)) - 1

    def group_size(self, in_features: int) -> int:
        """Columns that share a scale; the whole row when the granularity is per channel."""
        return self.granularity.size if isinstance(self.granularity, PerGroup) else in_features

    def groups(self, in_features: int) -> int:
        """Scales per row; the last group is short when the size does not divide the row."""
        return -(-in_features // self.group_size(in_features))

    def __str__(self) -> str:
        symmetry = "sym" if self.symmetric else "asym"
        grain = f"g{self.granularity.size}" if isinstance(self.granularity, PerGroup) else "channel"
        return f"int{self.num_bits}-{symmetry}-{grain}"


@dataclass(frozen=True)
class FloatScheme:
    """Floating-point numbers as they are."""

    dtype: Literal["float32", "float16", "bfloat16"]

    @property
    def num_bits(self) -> int:
        return 32 if self.dtype == "float32" else 16

    def __str__(self) -> str:
        return self.dtype


Scheme = IntScheme | FloatScheme
