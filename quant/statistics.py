"""Second moments of a linear's inputs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from quant.workers import Workers, bfloat16_products

_Result = TypeVar("_Result")
_Pair = tuple[torch.Tensor, torch.Tensor | None]

_ROWS = 32768
_TILE = 256


@dataclass(frozen=True)
class _Part:
    """Rows x float32 [tokens, columns], what each counts for, and (y - x) where that is wanted."""

    rows: torch.Tensor
    weight: float
    difference: torch.Tensor | None


class InputMoments:
    """Weighted sum of x x^T over tokens, kept as a sum and a weight: running means lose bits.

    first_token_share: how much of the whole the first token of each sample counts for. Most heads
    spend much of their attention there wherever nothing else calls for it (Xiao et al., "Efficient
    Streaming Language Models with Attention Sinks", ICLR 2024), so that an error at that one token
    reaches all others, while a plain mean would hardly see it. 0 counts all tokens alike.

    absmax: the largest magnitude of any input.

    With `cross`, also the weighted sum of (y - x) x^T, where y is the same input in the model that
    is not quantized.
    """

    def __init__(
        self,
        columns: int,
        first_token_share: float = 0.0,
        workers: Workers | None = None,
        cross: bool = False,
    ) -> None:
        self.tokens = 0
        self.absmax = 0.0
        self._share = first_token_share
        self._weight = 0.0
        self._sum = torch.zeros(columns, columns)
        self._cross = torch.zeros(columns, columns) if cross else None
        self._workers = workers

    def add(
        self,
        batches: Sequence[torch.Tensor],
        exact: Sequence[torch.Tensor] | None = None,
        weight: float = 1.0,
    ) -> None:
        """batches: [samples, tokens, columns] each, or [tokens, columns], where first tokens cannot
        be told and all count alike; any float type. exact: y of each, of the same shape. weight:
        what a token counts for.
        Products and sums are float32, in fixed order.
        """
        assert (exact is None) == (self._cross is None)
        pairs: list[_Pair] = [(batch, None) for batch in batches]
        if exact is not None:
            pairs = list(zip(batches, exact, strict=True))
        for group in _grouped(pairs):
            faster = all(batch.dtype == torch.bfloat16 for batch, _ in group)
            jobs = [partial(self._parts, *pair, weight) for pair in group]
            parts = [part for found in self._run(jobs) for part in found]
            starts = range(0, len(self._sum), _TILE)
            with bfloat16_products() if faster else nullcontext():
                self._run([partial(self._add_products, start, parts) for start in starts])
            if self._cross is not None:
                self._run([partial(self._add_cross, start, parts) for start in starts])
            self._weight += sum(part.weight * len(part.rows) for part in parts)
            self.absmax = max(self.absmax, *(float(part.rows.abs().max()) for part in parts))
            self.tokens += sum(batch.numel() // len(self._sum) for batch, _ in group)

    @property
    def wants_exact(self) -> bool:
        """Whether `add` takes `exact`."""
        return self._cross is not None

    def hessian(self) -> torch.Tensor:
        """float32 [columns, columns]: the weighted mean of x x^T."""
        upper = torch.triu(self._sum)
        return (upper + torch.triu(upper, 1).T) / max(self._weight, 1.0)

    def cross(self) -> torch.Tensor | None:
        """float32 [columns, columns]: the weighted mean of (y - x) x^T, with `cross`."""
        return None if self._cross is None else self._cross / max(self._weight, 1.0)

    def _parts(self, batch: torch.Tensor, exact: torch.Tensor | None, weight: float) -> list[_Part]:
        parts = [self._part(batch, exact, weight)]
        if batch.ndim == 3 and self._share > 0.0:
            extra = first_token_extra(self._share, batch.shape[1])
            if extra > 0.0:
                first = None if exact is None else exact[:, 0]
                parts.append(self._part(batch[:, 0], first, weight * extra))
        return parts

    def _part(self, batch: torch.Tensor, exact: torch.Tensor | None, weight: float) -> _Part:
        rows = batch.reshape(-1, len(self._sum)).float()
        difference = None
        if exact is not None:
            difference = exact.reshape(-1, len(self._sum)).float() - rows
        return _Part(rows, weight, difference)

    def _add_products(self, start: int, parts: Sequence[_Part]) -> None:
        """A row of tiles, from the diagonal on: the matrix is symmetric."""
        tile = self._sum[start : start + _TILE, start:]
        for part in parts:
            left = part.rows[:, start : start + _TILE]
            tile.addmm_(left.T, part.rows[:, start:], alpha=part.weight)

    def _add_cross(self, start: int, parts: Sequence[_Part]) -> None:
        assert self._cross is not None
        for part in parts:
            assert part.difference is not None
            left = part.difference[:, start : start + _TILE]
            self._cross[start : start + _TILE].addmm_(left.T, part.rows, alpha=part.weight)

    def _run(self, jobs: Sequence[Callable[[], _Result]]) -> list[_Result]:
        return [job() for job in jobs] if self._workers is None else self._workers.run(jobs)


def first_token_extra(share: float, tokens: int) -> float:
    """What the first of `tokens` tokens counts for beyond 1, so that it is `share` of the whole."""
    return max(share / (1.0 - share) * (tokens - 1) - 1.0, 0.0)


def _grouped(pairs: Sequence[_Pair]) -> Iterator[list[_Pair]]:
    """Consecutive batches of about `_ROWS` rows together."""
    group: list[_Pair] = []
    rows = 0
    for pair in pairs:
        group.append(pair)
        rows += pair[0].numel() // pair[0].shape[-1]
        if rows >= _ROWS:
            yield group
            group, rows = [], 0
    if group:
        yield group
