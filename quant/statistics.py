"""Second moments of a linear's inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from quant.workers import Workers, bfloat16_products

_Result = TypeVar("_Result")

_ROWS = 32768
_TILE = 256


@dataclass(frozen=True)
class _Part:
    """Rows x float32 [tokens, columns], what each counts for, and what is multiplied with it beside
    itself: by name, float32 [tokens, rows of the product]."""

    rows: torch.Tensor
    weight: float
    others: Mapping[str, torch.Tensor]


class InputMoments:
    """Weighted sum of x x^T over tokens, kept as a sum and a weight: running means lose bits.

    first_token_share: how much of the whole the first token of each sample counts for. Most heads
    spend much of their attention there wherever nothing else calls for it (Xiao et al., "Efficient
    Streaming Language Models with Attention Sinks", ICLR 2024), so that an error at that one token
    reaches all others, while a plain mean would hardly see it. 0 counts all tokens alike.

    absmax: the largest magnitude of any input, 0 without `find_absmax`.

    With `cross`, also the weighted sum of (y - x) x^T, where y is the same input in the model that
    is not quantized. With `drift` rows, also that of (s - r) x^T, where r [drift] is the residual
    stream that the linear's output is added to, and s the same in the model that is not quantized.
    """

    def __init__(
        self,
        columns: int,
        first_token_share: float = 0.0,
        workers: Workers | None = None,
        cross: bool = False,
        drift: int = 0,
        find_absmax: bool = True,
    ) -> None:
        self.tokens = 0
        self.absmax = 0.0
        self._find_absmax = find_absmax
        self._share = first_token_share
        self._weight = 0.0
        self._sum = torch.zeros(columns, columns)
        rows = {"cross": columns if cross else 0, "drift": drift}
        self._products = {name: torch.zeros(r, columns) for name, r in rows.items() if r}
        self._workers = workers

    def add(
        self,
        batches: Sequence[torch.Tensor],
        exact: Sequence[torch.Tensor] | None = None,
        weight: float = 1.0,
        drift: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """batches: [samples, tokens, columns] each, or [tokens, columns], where first tokens cannot
        be told and all count alike; any float type. exact: y of each, of the same shape. drift:
        s - r of each, [..., drift]. weight: what a token counts for.
        Products and sums are float32, in fixed order.
        """
        assert (exact is None) == ("cross" not in self._products)
        assert (drift is None) == ("drift" not in self._products)
        inputs = [
            _Batch(batch, None if exact is None else exact[i], None if drift is None else drift[i])
            for i, batch in enumerate(batches)
        ]
        for group in _grouped(inputs):
            faster = all(batch.inputs.dtype == torch.bfloat16 for batch in group)
            jobs = [partial(self._parts, batch, weight, faster) for batch in group]
            parts = [part for found in self._run(jobs) for part in found]
            products = [
                partial(self._add_products, start, parts)
                for start in range(0, len(self._sum), _TILE)
            ]
            for name, product in self._products.items():
                starts = range(0, len(product), _TILE)
                products += [partial(self._add_other, name, start, parts) for start in starts]
            with bfloat16_products() if faster else nullcontext():
                self._run(products)
            self._weight += sum(part.weight * len(part.rows) for part in parts)
            if self._find_absmax:
                found = self._run([partial(_absmax, part.rows) for part in parts])
                self.absmax = max(self.absmax, *found)
            self.tokens += sum(batch.inputs.numel() // len(self._sum) for batch in group)

    @property
    def wants_exact(self) -> bool:
        """Whether `add` takes `exact`."""
        return "cross" in self._products

    def hessian(self) -> torch.Tensor:
        """float32 [columns, columns]: the weighted mean of x x^T."""
        upper = torch.triu(self._sum)
        return (upper + torch.triu(upper, 1).T) / max(self._weight, 1.0)

    def cross(self) -> torch.Tensor | None:
        """float32 [columns, columns]: the weighted mean of (y - x) x^T, with `cross`."""
        return self._mean("cross")

    def drift(self) -> torch.Tensor | None:
        """float32 [drift, columns]: the weighted mean of (s - r) x^T, with `drift`."""
        return self._mean("drift")

    def _mean(self, name: str) -> torch.Tensor | None:
        product = self._products.get(name)
        return None if product is None else product / max(self._weight, 1.0)

    def _parts(self, batch: "_Batch", weight: float, faster: bool) -> list[_Part]:
        parts = [_part(batch, weight, faster)]
        if batch.inputs.ndim == 3 and self._share > 0.0:
            extra = first_token_extra(self._share, batch.inputs.shape[1])
            if extra > 0.0:
                parts.append(_part(batch.first_tokens(), weight * extra, faster))
        return parts

    def _add_products(self, start: int, parts: Sequence[_Part]) -> None:
        """A row of tiles, from the diagonal on: the matrix is symmetric."""
        tile = self._sum[start : start + _TILE, start:]
        for part in parts:
            left = part.rows[:, start : start + _TILE]
            tile.addmm_(left.T, part.rows[:, start:], alpha=part.weight)

    def _add_other(self, name: str, start: int, parts: Sequence[_Part]) -> None:
        tile = self._products[name][start : start + _TILE]
        for part in parts:
            left = part.others[name][:, start : start + _TILE]
            tile.addmm_(left.T, part.rows, alpha=part.weight)

    def _run(self, jobs: Sequence[Callable[[], _Result]]) -> list[_Result]:
        return [job() for job in jobs] if self._workers is None else self._workers.run(jobs)


def first_token_extra(share: float, tokens: int) -> float:
    """What the first of `tokens` tokens counts for beyond 1, so that it is `share` of the whole."""
    return max(share / (1.0 - share) * (tokens - 1) - 1.0, 0.0)


@dataclass(frozen=True)
class _Batch:
    """What `InputMoments.add` takes, for one batch."""

    inputs: torch.Tensor
    exact: torch.Tensor | None
    drift: torch.Tensor | None

    def first_tokens(self) -> "_Batch":
        rest = (None if other is None else other[:, 0] for other in (self.exact, self.drift))
        return _Batch(self.inputs[:, 0], *rest)


def _part(batch: _Batch, weight: float, faster: bool) -> _Part:
    """faster: products will be of bfloat16 numbers. Inputs are such; differences lose 8 bits of
    their own size by it, which is far below what is made up for."""
    rows, others = _flat(batch.inputs), dict[str, torch.Tensor]()
    if batch.exact is not None:
        others["cross"] = _flat(batch.exact) - rows
    if batch.drift is not None:
        others["drift"] = _flat(batch.drift)
    if faster:
        others = {name: other.bfloat16().float() for name, other in others.items()}
    return _Part(rows, weight, others)


def _absmax(rows: torch.Tensor) -> float:
    low, high = torch.aminmax(rows)
    return max(-float(low), float(high))


def _flat(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, values.shape[-1]).float()


def _grouped(batches: Sequence[_Batch]) -> Iterator[list[_Batch]]:
    """Consecutive batches of about `_ROWS` rows together."""
    group: list[_Batch] = []
    rows = 0
    for batch in batches:
        group.append(batch)
        rows += batch.inputs.numel() // batch.inputs.shape[-1]
        if rows >= _ROWS:
            yield group
            group, rows = [], 0
    if group:
        yield group
