"""What is to be done with each linear, decided before the first weight is read."""

from dataclasses import dataclass
from typing import Literal

from quant.format.kv_cache import KvCacheScheme
from quant.format.scheme import QuantizedScheme
from quant.transforms.settings import LayerTransforms

FloatDtype = Literal["float32", "float16", "bfloat16"]
ScaleChoice = Literal["range", "search", "signed"]
"""How scales are chosen: to clip nothing; by least weighted error; the same with either sign."""
Algorithm = Literal["rtn", "gptq", "gptaq", "qronos"]
CORRECTING: frozenset[Algorithm] = frozenset({"gptaq", "qronos"})
"""Those whose targets make up for what earlier layers lost."""
Deviation = Literal["damping_raised", "rtn_fallback", "shared_statistics"]
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
"""Linears that servers make one of: what a whole tensor shares, they share."""


@dataclass(frozen=True)
class LinearTask:
    """One linear to quantize. `module` is its name without `.weight`."""

    module: str
    scheme: QuantizedScheme
    algorithm: Algorithm

    @property
    def corrected(self) -> bool:
        """Whether its target is what the linear gives in the model that is not quantized."""
        return self.algorithm in CORRECTING


@dataclass(frozen=True)
class RoundingSettings:
    """How linears are rounded; see the fields of the recipe for their meaning.

    lowest_zero: smallest zero point of asymmetric groups, counted from qmin; a container may need
    it. allowed: deviations from what was asked that do not end the run. transforms: what happens to
    each layer before it is rounded. expert_min_tokens: see `quant.expert_stage`. kv_cache: what the
    scales of the KV cache are for, None for no such scales.
    """

    damping: float = 0.01
    by_activation: bool = True
    scales: ScaleChoice = "signed"
    polish: int = 2
    first_token_share: float = 0.2
    correction_share: float = 1.0
    expert_min_tokens: int | None = None
    scale_dtype: FloatDtype = "bfloat16"
    lowest_zero: int = 0
    allowed: frozenset[Deviation] = frozenset()
    transforms: LayerTransforms | None = None
    kv_cache: KvCacheScheme | None = None
