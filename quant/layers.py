"""The layer loop: one decoder layer in memory at a time, each seeing what its predecessors, already
rounded, produce. Inside a layer too: a linear's statistics come from inputs that passed through the
rounded linears before it ("true sequential").
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from quant.capture import LayerArguments, capture_inputs
from quant.format.tensor import WeightSource
from quant.rounding_algorithms.dispatch import round_stage, unreached
from quant.rounding_algorithms.result import Rounded
from quant.skeleton import Skeleton, load_float, loaded
from quant.statistics import InputMoments
from quant.tasks import LinearTask, RoundingSettings

Stage = tuple[str, ...]
"""Linears of a layer, by name inside it, that read the same tensor."""


class _StageReachedError(Exception):
    """Ends a forward whose only purpose was to reach a stage's input."""


def quantize_layers(
    skeleton: Skeleton,
    source: WeightSource,
    tokens: torch.Tensor,
    tasks: Mapping[str, LinearTask],
    settings: RoundingSettings,
    samples_per_batch: int,
) -> Iterator[dict[str, Rounded]]:
    """Yield, layer by layer, the rounded linears by module name.

    tokens: int64 [samples, tokens], without padding. A layer's weights are loaded before its turn
    and gone after it; only the activations of the calibration set are carried along.
    """
    outer = {name: name for name in skeleton.outer_parameters()}
    with loaded(skeleton.model, outer, source, skeleton.compute_dtype):
        hidden, arguments = capture_inputs(skeleton, tokens)
    for index, layer in enumerate(skeleton.layers):
        prefix = skeleton.layer_name(index)
        names = {name: f"{prefix}.{name}" for name, _ in layer.named_parameters()}
        with loaded(layer, names, source, skeleton.compute_dtype):
            turn = _LayerTurn(layer, prefix, arguments[index], tasks, settings)
            turn.run(hidden, samples_per_batch)
        yield turn.results


def round_layers_alone(
    skeleton: Skeleton,
    source: WeightSource,
    tasks: Mapping[str, LinearTask],
    settings: RoundingSettings,
) -> Iterator[dict[str, Rounded]]:
    """As `quantize_layers`, for tasks that need no calibration: weights are rounded as they are."""
    for index in range(len(skeleton.layers)):
        prefix = f"{skeleton.layer_name(index)}."
        mine = [task for name, task in tasks.items() if name.startswith(prefix)]
        yield {t.module: _round_alone(source, t, settings) for t in mine}


def _round_alone(source: WeightSource, task: LinearTask, settings: RoundingSettings) -> Rounded:
    weight = load_float(source, f"{task.module}.weight").float()
    return unreached(task, weight, settings)


class _LayerTurn:
    """One decoder layer: finds its stages, rounds them in order, moves the activations on."""

    def __init__(
        self,
        layer: torch.nn.Module,
        prefix: str,
        arguments: LayerArguments,
        tasks: Mapping[str, LinearTask],
        settings: RoundingSettings,
    ) -> None:
        self.results: dict[str, Rounded] = {}
        self._layer = layer
        self._arguments = arguments
        self._settings = settings
        start = len(prefix) + 1
        self._tasks = {n[start:]: t for n, t in tasks.items() if n.startswith(f"{prefix}.")}

    @torch.no_grad()
    def run(self, hidden: torch.Tensor, samples_per_batch: int) -> None:
        """Round every task of the layer; `hidden` [samples, tokens, hidden] becomes its output."""
        stages = self._find_stages(hidden[:1])
        if len(hidden) <= samples_per_batch:
            self._round_while_passing(hidden, stages)
        else:
            self._round_by_replay(hidden, stages, samples_per_batch)
        for name, task in self._tasks.items():
            if task.module not in self.results:
                weight = self._linear(name).weight.float()
                self.results[task.module] = unreached(task, weight, self._settings)

    def _linear(self, name: str) -> torch.nn.Linear:
        linear = self._layer.get_submodule(name)
        assert isinstance(linear, torch.nn.Linear)
        return linear

    def _new_moments(self, name: str) -> InputMoments:
        return InputMoments(self._linear(name).in_features, self._settings.first_token_share)

    def _find_stages(self, sample: torch.Tensor) -> list[Stage]:
        """Group the linears by the tensor they read, in the order of their first use."""
        readers: dict[int, list[str]] = {}
        seen: list[torch.Tensor] = []

        def note(name: str, inputs: torch.Tensor) -> None:
            seen.append(inputs)
            readers.setdefault(id(inputs), []).append(name)

        self._forward_with(sample, dict.fromkeys(self._tasks, note))
        return [tuple(dict.fromkeys(names)) for names in readers.values()]

    def _round_while_passing(self, hidden: torch.Tensor, stages: Sequence[Stage]) -> None:
        """One forward of everything: each stage is rounded the moment its input is there."""
        by_first = {stage[0]: stage for stage in stages}

        def on_input(name: str, inputs: torch.Tensor) -> None:
            stage = by_first.pop(name, None)
            if stage is not None:
                moments = self._new_moments(name)
                moments.add(inputs)
                self._round(stage, moments)

        hidden.copy_(self._forward_with(hidden, dict.fromkeys(by_first, on_input)))

    def _round_by_replay(
        self, hidden: torch.Tensor, stages: Sequence[Stage], samples_per_batch: int
    ) -> None:
        """For each stage, forward all batches up to its input; then once more to the end."""
        batches = torch.split(hidden, samples_per_batch)
        for stage in stages:
            self._round(stage, self._moments(stage, batches))
        for batch in batches:
            batch.copy_(self._forward_with(batch, {}))

    def _moments(self, stage: Stage, batches: Sequence[torch.Tensor]) -> InputMoments:
        moments = self._new_moments(stage[0])

        def collect(_: str, inputs: torch.Tensor) -> None:
            moments.add(inputs)
            raise _StageReachedError

        for batch in batches:
            try:
                self._forward_with(batch, {stage[0]: collect})
            except _StageReachedError:
                continue
        return moments

    def _round(self, stage: Stage, moments: InputMoments) -> None:
        """Round the stage's linears and let the layer go on with what will be stored."""
        linears = {name: self._linear(name) for name in stage}
        weights = {self._tasks[n].module: m.weight.float() for n, m in linears.items()}
        rounded = round_stage(
            [self._tasks[name] for name in stage], weights, moments.hessian(), self._settings
        )
        for name, linear in linears.items():
            linear.weight.copy_(rounded[self._tasks[name].module].dequantized)
        self.results |= rounded

    def _forward_with(
        self, hidden: torch.Tensor, hooks: Mapping[str, Callable[[str, torch.Tensor], None]]
    ) -> torch.Tensor:
        """The layer's output; each hook is called with its linear's name and input first."""
        handles = [
            self._layer.get_submodule(name).register_forward_pre_hook(_pre_hook(name, hook))
            for name, hook in hooks.items()
        ]
        try:
            output = self._layer(hidden, *self._arguments.args, **self._arguments.kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return output if isinstance(output, torch.Tensor) else output[0]


def _pre_hook(
    name: str, hook: Callable[[str, torch.Tensor], None]
) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
    def call(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
        hook(name, args[0])

    return call
