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
class BalanceSettings:
    """tokens: how many tell what an error in a column costs, in whole samples."""

    tokens: int = 4096


@dataclass(frozen=True)
class LayerTransforms:
    """What happens to each layer before it is rounded: smoothquant first, then balance, then awq on
    what these leave.

    model_type and head_dim: of the model's text config.
    """

    model_type: str
    head_dim: int
    awq: AwqSettings | None = None
    smoothquant: SmoothQuantSettings | None = None
    balance: BalanceSettings | None = None

    @property
    def tokens(self) -> int:
        """Tokens that searches look at."""
        return max(t.tokens for t in (self.awq, self.smoothquant, self.balance) if t is not None)
