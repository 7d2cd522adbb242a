"""Rounds the experts of one layer, each by the tokens that the router sends to it.

An expert that sees too few tokens would have a Hessian of low rank, and one that sees none would
be rounded to nearest. Such an expert's statistics are filled up with tokens of the whole layer,
sent through it for that alone: H <- (n H_own + k H_layer) / (n + k), where k is what is missing of
the least number of tokens. What the layer puts out still follows the router.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch

from quant.experts import Expert, Experts
from quant.forwards import HaltedForwards
from quant.rounding_algorithms.dispatch import StageMoments, round_stage
from quant.rounding_algorithms.result import Rounded
from quant.stages import WeightOf
from quant.statistics import InputMoments, first_token_extra
from quant.tasks import LinearTask, RoundingSettings
from quant.workers import Workers

_GROUP_TOKENS = 4
"""Tokens that an expert should see for each group of its columns."""
_LEAST_SHARE = 0.005
"""Share of all tokens that it should see at least."""
_BATCHES = 16
_LENT_TOKENS = 4
"""Tokens of the layer that are looked at for an expert that needs some, for each of its columns."""


@dataclass(frozen=True)
class RoutedBatch:
    """Tokens at the experts' door.

    hidden: [tokens, hidden]; exact: the same in the model that is not quantized, or None; index:
    int64 [tokens, experts per token]. length: tokens of each sample, which lie one after the other.
    """

    hidden: torch.Tensor
    exact: torch.Tensor | None
    index: torch.Tensor
    length: int


@dataclass(frozen=True)
class _Rows:
    """Rows at the door that count alike: [tokens, hidden], and in the exact model."""

    rows: torch.Tensor
    exact: torch.Tensor | None
    weight: float

    def through(self, expert: Expert, exact: Expert | None) -> "_Rows":
        """What reaches the expert's last linear."""
        other = None
        if self.exact is not None and exact is not None:
            other = exact.inner(self.exact)
        return _Rows(expert.inner(self.rows), other, self.weight)


@dataclass(frozen=True)
class ExpertBlock:
    """The experts of a block, whose name inside the layer is `name`.

    exact: the same in the model that is not quantized, where that is known. tasks: by name inside
    `experts`, e.g. "3.up_proj".
    """

    name: str
    experts: Experts
    exact: Experts | None
    tasks: Mapping[str, LinearTask]


class ExpertStage:
    """The experts of one block while they are rounded, one after the other.

    The forwards halt at their common door. length: tokens of a sample.
    """

    def __init__(
        self,
        block: ExpertBlock,
        length: int,
        weight: WeightOf,
        settings: RoundingSettings,
        workers: Workers,
    ) -> None:
        self._block = block
        self._length = length
        self._weight = weight
        self._settings = settings
        self._workers = workers
        self._batches: list[RoutedBatch] = []

    def add(self, forwards: HaltedForwards, others: HaltedForwards | None) -> None:
        """What is about to be routed, and what is in the model that is not quantized."""
        calls = forwards.arguments(self._block.name)
        exact = [()] * len(calls) if others is None else others.arguments(self._block.name)
        for call, same in zip(calls, exact, strict=True):
            if call:
                hidden, index = call[:2]
                batch = RoutedBatch(hidden, same[0] if same else None, index, self._length)
                self._batches.append(batch)

    def round(self) -> dict[str, Rounded]:
        """Results by module; the layer goes on with what will be stored."""
        results: dict[str, Rounded] = {}
        tasks, share = self._block.tasks, self._settings.first_token_share
        for number, expert in enumerate(self._block.experts):
            assert isinstance(expert, Expert)
            names, own = expert.names, _own(number, self._batches, share)
            seen = sum(int((batch.index == number).sum()) for batch in self._batches)
            for leaves in ((names.gate, names.up), (names.down,)):
                full = [f"{number}.{leaf}" for leaf in leaves]
                members = {name: tasks[name] for name in full if name in tasks}
                if members:
                    results |= self._round(number, members, own, seen)
        return results

    def _round(
        self, number: int, tasks: Mapping[str, LinearTask], own: Sequence[_Rows], seen: int
    ) -> dict[str, Rounded]:
        first, experts = next(iter(tasks)), self._block.experts
        least = self._least(first)
        rows = list(own)
        if seen < least:
            rows += _lent(self._batches, least - seen, self._columns(first))
        moments = self._moments(number, tasks, rows)
        measured = StageMoments(
            moments.hessian(), moments.cross(), seen, moments.absmax, shared=seen < least
        )
        weights = {t.module: self._weight(f"{self._block.name}.{n}") for n, t in tasks.items()}
        rounded = round_stage(
            list(tasks.values()), weights, measured, self._settings, self._workers
        )
        for name, task in tasks.items():
            weight = experts.get_submodule(name).get_parameter("weight")
            weight.copy_(rounded[task.module].dequantized)
        return rounded

    def _moments(
        self, number: int, tasks: Mapping[str, LinearTask], rows: Sequence[_Rows]
    ) -> InputMoments:
        first = next(iter(tasks))
        cross = any(task.corrected for task in tasks.values())
        moments = InputMoments(self._columns(first), workers=self._workers, cross=cross)
        expert = self._block.experts[number]
        exact = self._block.exact[number] if cross and self._block.exact is not None else None
        assert isinstance(expert, Expert) and (exact is None or isinstance(exact, Expert))
        for start in range(0, len(rows), _BATCHES):
            parts = list(rows[start : start + _BATCHES])
            if first == f"{number}.{expert.names.down}":
                parts = self._workers.run([partial(p.through, expert, exact) for p in parts])
            for weight, same in groupby(parts, key=lambda part: part.weight):
                alike = list(same)
                exactly = [p.exact for p in alike if p.exact is not None] if cross else None
                moments.add([part.rows for part in alike], exactly, weight)
        return moments

    def _columns(self, name: str) -> int:
        return int(self._block.experts.get_submodule(name).get_parameter("weight").shape[1])

    def _least(self, name: str) -> int:
        """Tokens that the linear's statistics should be of."""
        if self._settings.expert_min_tokens is not None:
            return self._settings.expert_min_tokens
        tokens = sum(len(batch.hidden) for batch in self._batches)
        groups = self._block.tasks[name].scheme.groups(self._columns(name))
        return max(_GROUP_TOKENS * groups, math.ceil(_LEAST_SHARE * tokens))


def _own(number: int, batches: Sequence[RoutedBatch], first_token_share: float) -> list[_Rows]:
    """What the router sends to an expert. First tokens of samples count for more, as they do
    elsewhere; see `InputMoments`."""
    rows, first = list[_Rows](), list[_Rows]()
    for batch in batches:
        tokens = (batch.index == number).any(1).nonzero()[:, 0]
        rows += _picked(batch, tokens, 1.0)
        extra = first_token_extra(first_token_share, batch.length)
        if extra > 0.0:
            first += _picked(batch, tokens[tokens % batch.length == 0], extra)
    return [*rows, *first]


def _picked(batch: RoutedBatch, tokens: torch.Tensor, weight: float) -> Iterator[_Rows]:
    if len(tokens):
        exact = None if batch.exact is None else batch.exact[tokens]
        yield _Rows(batch.hidden[tokens], exact, weight)


def _lent(batches: Sequence[RoutedBatch], missing: int, columns: int) -> Iterator[_Rows]:
    """Evenly spaced tokens of the layer that together count for `missing` ones."""
    total = sum(len(batch.hidden) for batch in batches)
    step = max(1, total // max(_LENT_TOKENS * columns, missing))
    weight = missing / sum(len(range(0, len(batch.hidden), step)) for batch in batches)
    for batch in batches:
        yield from _picked(batch, torch.arange(0, len(batch.hidden), step), weight)
