"""Second moments of a linear's inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from quant.products import Rows, Term, product_jobs, rows_of
from quant.workers import Workers, bfloat16_products, run_jobs

_ROWS = 32768


@dataclass(frozen=True)
class _Part:
    """Inputs x [tokens, columns], what each token counts for, and what is multiplied with x beside
    itself: by name, [tokens, rows of the product]."""

    inputs: Rows
    weight: float
    others: Mapping[str, Rows]


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
        self._others = {name: torch.zeros(r, columns) for name, r in rows.items() if r}
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
        assert (exact is None) == ("cross" not in self._others)
        assert (drift is None) == ("drift" not in self._others)
        inputs = [
            _Batch(batch, None if exact is None else exact[i], None if drift is None else drift[i])
            for i, batch in enumerate(batches)
        ]
        for group in _grouped(inputs):
            as_bfloat16 = all(batch.inputs.dtype == torch.bfloat16 for batch in group)
            weighted = [(batch, weight) for batch in group] + self._first_tokens(group, weight)
            parts = run_jobs(
                [partial(_part, *part, as_bfloat16) for part in weighted], self._workers
            )
            with bfloat16_products() if as_bfloat16 else nullcontext():
                run_jobs(self._products(parts), self._workers)
            self._weight += sum(counts * batch.tokens for batch, counts in weighted)
            if self._find_absmax:
                found = run_jobs([partial(_absmax, batch.inputs) for batch in group], self._workers)
                self.absmax = max(self.absmax, *found)
            self.tokens += sum(batch.tokens for batch in group)

    @property
    def wants_exact(self) -> bool:
        """Whether `add` takes `exact`."""
        return "cross" in self._others

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
        product = self._others.get(name)
        return None if product is None else product / max(self._weight, 1.0)

    def _first_tokens(
        self, group: Sequence["_Batch"], weight: float
    ) -> list[tuple["_Batch", float]]:
        """The first tokens of all samples, once more, and what each counts for beyond `weight`."""
        batches: dict[float, list[_Batch]] = {}
        for batch in group:
            if batch.inputs.ndim == 3 and self._share > 0.0:
                extra = first_token_extra(self._share, batch.inputs.shape[1])
                batches.setdefault(weight * extra, []).append(batch)
        return [(_first_tokens(same), extra) for extra, same in batches.items() if extra > 0.0]

    def _products(self, parts: Sequence[_Part]) -> list[Callable[[], None]]:
        squares = [Term(part.inputs, part.inputs, part.weight) for part in parts]
        jobs = product_jobs(self._sum, squares, upper=True)
        for name, product in self._others.items():
            terms = [Term(part.others[name], part.inputs, part.weight) for part in parts]
            jobs += product_jobs(product, terms, upper=False)
        return jobs


def first_token_extra(share: float, tokens: int) -> float:
    """What the first of `tokens` tokens counts for beyond 1, so that it is `share` of the whole."""
    return max(share / (1.0 - share) * (tokens - 1) - 1.0, 0.0)


@dataclass(frozen=True)
class _Batch:
    """What `InputMoments.add` takes, for one batch."""

    inputs: torch.Tensor
    exact: torch.Tensor | None
    drift: torch.Tensor | None

    @property
    def tokens(self) -> int:
        return self.inputs.numel() // self.inputs.shape[-1]


def _first_tokens(batches: Sequence[_Batch]) -> _Batch:
    """Those of every sample, as one batch."""

    def first(values: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        there = [value[:, 0] for value in values if value is not None]
        return torch.cat(there) if there else None

    inputs = torch.cat([batch.inputs[:, 0] for batch in batches])
    return _Batch(inputs, first([b.exact for b in batches]), first([b.drift for b in batches]))


def _part(batch: _Batch, weight: float, as_bfloat16: bool) -> _Part:
    """as_bfloat16: inputs are such numbers; differences lose 8 bits of their own size by it, which
    is far below what is made up for."""
    others = {}
    if batch.exact is not None:
        others["cross"] = rows_of(
            _flat(batch.exact).float() - _flat(batch.inputs).float(), as_bfloat16
        )
    if batch.drift is not None:
        others["drift"] = rows_of(_flat(batch.drift), as_bfloat16)
    return _Part(rows_of(_flat(batch.inputs), as_bfloat16), weight, others)


def _absmax(values: torch.Tensor) -> float:
    low, high = torch.aminmax(values)
    return max(-float(low), float(high))


def _flat(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, values.shape[-1])


def _grouped(batches: Sequence[_Batch]) -> Iterator[list[_Batch]]:
    """Consecutive batches of about `_ROWS` rows together."""
    group: list[_Batch] = []
    rows = 0
    for batch in batches:
        group.append(batch)
        rows += batch.tokens
        if rows >= _ROWS:
            yield group
            group, rows = [], 0
    if group:
        yield group
