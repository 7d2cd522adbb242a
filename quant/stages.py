"""Linears of a layer that read the same tensor: what they see, then what they become."""

from collections.abc import Callable, Mapping, Sequence

import torch

from quant.forwards import HaltedForwards
from quant.rounding_algorithms.dispatch import StageMoments, round_stage
from quant.rounding_algorithms.inputs import stores_input_scale
from quant.rounding_algorithms.result import Rounded
from quant.statistics import InputMoments
from quant.tasks import LinearTask, RoundingSettings
from quant.workers import Workers

WeightOf = Callable[[str], torch.Tensor]
"""From the name of a linear inside its layer to the weight to round: float32 [out, in]."""


class LinearStage:
    """linears, tasks: by name inside the layer; the forwards halt at the first of them."""

    def __init__(
        self,
        linears: Mapping[str, torch.nn.Linear],
        tasks: Mapping[str, LinearTask],
        weight: WeightOf,
        settings: RoundingSettings,
        workers: Workers,
        residual: str | None = None,
    ) -> None:
        """residual: the norm that reads the stream which the only linear's output is added to."""
        self._linears = linears
        self._tasks = tasks
        self._weight = weight
        self._settings = settings
        self._workers = workers
        self._first = next(iter(linears))
        columns = linears[self._first].in_features
        cross = any(task.corrected for task in tasks.values())
        self._residual = residual if cross else None
        drift = linears[self._first].out_features if self._residual is not None else 0
        stored = any(stores_input_scale(task.scheme) for task in tasks.values())
        self._moments = InputMoments(
            columns, settings.first_token_share, workers, cross, drift, stored
        )

    def add(self, forwards: HaltedForwards, others: HaltedForwards | None) -> None:
        """What is about to be read, and what is in the model that is not quantized."""
        inputs = forwards.inputs(self._first)
        if others is None or not self._moments.wants_exact:
            self._moments.add([batch for batch in inputs if batch is not None])
            return
        exact = others.inputs(self._first)
        drift = None
        if self._residual is not None:
            streams = zip(others.noted(self._residual), forwards.noted(self._residual), strict=True)
            drift = [s.float() - r.float() for s, r in streams if s is not None and r is not None]
        self._moments.add(_present(inputs), _present(exact), drift=drift)

    def round(self) -> dict[str, Rounded]:
        """Results by module; the layer goes on with what will be stored."""
        moments = self._moments
        if moments.tokens == 0:
            return {}
        weights = {self._tasks[name].module: self._weight(name) for name in self._linears}
        rounded = round_stage(
            list(self._tasks.values()),
            weights,
            StageMoments(
                moments.hessian(),
                moments.cross(),
                moments.tokens,
                moments.absmax,
                moments.drift(),
            ),
            self._settings,
            self._workers,
        )
        for name, linear in self._linears.items():
            linear.weight.copy_(rounded[self._tasks[name].module].dequantized)
        return rounded


def _present(inputs: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    """Outside of experts, every batch reaches every linear."""
    assert all(batch is not None for batch in inputs)
    return [batch for batch in inputs if batch is not None]
