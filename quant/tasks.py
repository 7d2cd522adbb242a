"""What is to be done with each linear, decided before the first weight is read."""

from dataclasses import dataclass
from typing import Literal

from quant.format.scheme import IntScheme

FloatDtype = Literal["float32", "float16", "bfloat16"]
Algorithm = Literal["gptq", "rtn"]
Deviation = Literal["damping_raised", "rtn_fallback"]


@dataclass(frozen=True)
class LinearTask:
    """One linear to quantize. `module` is its name without `.weight`."""

    module: str
    scheme: IntScheme
    algorithm: Algorithm


@dataclass(frozen=True)
class RoundingSettings:
    """How linears are rounded; see the fields of the recipe for their meaning.

    allowed: deviations from what was asked that do not end the run.
    """

    damping: float = 0.01
    by_activation: bool = True
    scale_search: bool = True
    refits: int = 1
    scale_dtype: FloatDtype = "bfloat16"
    allowed: frozenset[Deviation] = frozenset()
