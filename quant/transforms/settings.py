"""What is asked of the transforms, decided before the first weight is read."""

from dataclasses import dataclass
from typing import Literal

AwqFormula = Literal["both", "plain", "duo"]


@dataclass(frozen=True)
class AwqSettings:
    """See the fields of the recipe. tokens: how many the search looks at, in whole samples."""

    ratios: int = 20
    formula: AwqFormula = "duo"
    clip: bool = False
    tokens: int = 1024


@dataclass(frozen=True)
class SmoothQuantSettings:
    """alpha None: the best of `ALPHAS` at each point. outputs: v -> o and up -> down as well."""

    alpha: float | None = 0.5
    outputs: bool = False
    tokens: int = 2048


@dataclass(frozen=True)
class LayerTransforms:
    """What happens to each layer before it is rounded: smoothquant first, awq on what it leaves.

    model_type and head_dim: of the model's text config.
    """

    model_type: str
    head_dim: int
    awq: AwqSettings | None = None
    smoothquant: SmoothQuantSettings | None = None

    @property
    def tokens(self) -> int:
        """Tokens that searches look at."""
        return max(t.tokens for t in (self.awq, self.smoothquant) if t is not None)
