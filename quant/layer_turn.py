"""One decoder layer's turn in the loop: its linears are rounded in the order in which they run,
each by statistics of inputs that passed through the rounded linears before it ("true sequential").
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import torch

from quant.capture import LayerArguments
from quant.expert_stage import ExpertBlock, ExpertStage
from quant.experts import find_experts
from quant.forwards import HaltedForwards
from quant.kv_cache import CacheRecorder
from quant.rounding_algorithms.dispatch import round_alone
from quant.rounding_algorithms.result import LayerResult, Rounded
from quant.skeleton import to_numpy, to_torch
from quant.stages import LinearStage
from quant.tasks import LinearTask, RoundingSettings
from quant.transforms.layer import TransformedLayer, transform_layer
from quant.workers import Workers

Stage = tuple[str, ...]
"""Linears of a layer, by name inside it, that read the same tensor; or all experts of a block."""
Batches = Sequence[torch.Tensor]

_BATCH_TOKENS = 2048
"""Tokens that pass a layer together: few enough that what lies between two operations stays in the
processor's caches, and the same for any number of threads."""


class LayerTurn:
    """One decoder layer: finds its stages, rounds them in order, moves the activations on."""

    def __init__(
        self,
        layer: torch.nn.Module,
        prefix: str,
        arguments: LayerArguments,
        tasks: Mapping[str, LinearTask],
        settings: RoundingSettings,
        workers: Workers,
        stored: Mapping[str, torch.dtype],
        residuals: Mapping[str, str],
    ) -> None:
        self._residuals = residuals
        self.results: dict[str, Rounded] = {}
        self.changed: dict[str, npt.NDArray[Any]] = {}
        self.added: dict[str, npt.NDArray[Any]] = {}
        self._layer = layer
        self._arguments = arguments
        self._cache = CacheRecorder() if settings.kv_cache is not None else None
        self._settings = settings
        self._workers = workers
        self._stored = stored
        self._transformed = TransformedLayer()
        self._prefix = prefix
        self._start = start = len(prefix) + 1
        self._tasks = {n[start:]: t for n, t in tasks.items() if n.startswith(f"{prefix}.")}
        self._experts = {n: e for n, e in find_experts(layer).items() if self._tasks_inside(n)}

    @torch.no_grad()
    def run(self, hidden: torch.Tensor, exact: torch.Tensor | None, samples_at_once: int) -> None:
        """Round every task of the layer; `hidden` [samples, tokens, hidden] becomes its output, and
        `exact`, the same in the model that is not quantized, that of the layer as it was."""
        self._transform(hidden)
        stages = self._find_stages(hidden[:1])
        float_layer = None if exact is None else copy.deepcopy(self._layer)
        if len(hidden) <= samples_at_once:
            self._round_while_passing(hidden, exact, float_layer, stages)
        else:
            self._round_by_replay(hidden, exact, float_layer, stages, samples_at_once)
        left = [t for t in self._tasks.values() if t.module not in self.results]
        weights = {t.module: self._weight(n) for n, t in self._tasks.items() if t in left}
        self.results |= round_alone(left, weights, self._settings)
        for name, how in self._transformed.chosen.items():
            module = self._tasks[name].module
            self.results[module] = replace(self.results[module], transform=how)
        if self._cache is not None and self._settings.kv_cache is not None:
            self.added |= self._cache.tensors(self._prefix, self._settings.kv_cache)

    @torch.no_grad()
    def replay(
        self,
        result: LayerResult,
        hidden: torch.Tensor,
        exact: torch.Tensor | None,
        samples_at_once: int,
    ) -> None:
        """Only move the activations on, through what `result` says is stored."""
        if exact is not None:
            self._transform(hidden)
            self._move_all_on(self._layer, exact, samples_at_once)
        for name, array in result.changed.items():
            self._layer.get_parameter(name[self._start :]).copy_(to_torch(array))
        for name, task in self._tasks.items():
            self._linear(name).weight.copy_(result.rounded[task.module].dequantized)
        self._move_all_on(self._layer, hidden, samples_at_once)

    def _transform(self, hidden: torch.Tensor) -> None:
        """What the settings ask for before the layer is rounded; its function stays."""
        if self._settings.transforms is None:
            return
        self._transformed = transform_layer(
            self._layer,
            self._forward,
            hidden,
            self._tasks,
            self._settings,
            self._settings.transforms,
            self._stored,
            self._workers,
        )
        for name, value in self._transformed.written.items():
            self.changed[f"{self._prefix}.{name}"] = to_numpy(value)

    def _forward(self, layer: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        output = layer(hidden, *self._arguments.args, **self._arguments.kwargs)
        return output if isinstance(output, torch.Tensor) else output[0]

    def _weight(self, name: str) -> torch.Tensor:
        """float32 [out, in] of a linear, with bits that the layer itself may not hold."""
        exact = self._transformed.weights.get(name)
        return self._linear(name).weight.float() if exact is None else exact

    def _tasks_inside(self, name: str) -> dict[str, LinearTask]:
        start = f"{name}."
        return {n[len(start) :]: t for n, t in self._tasks.items() if n.startswith(start)}

    def _linear(self, name: str) -> torch.nn.Linear:
        linear = self._layer.get_submodule(name)
        assert isinstance(linear, torch.nn.Linear)
        return linear

    def _find_stages(self, sample: torch.Tensor) -> list[Stage]:
        """Group the linears by the tensor they read, in the order of their first use. The experts
        of a block are one stage: which of them a sample reaches is up to the router."""
        readers: dict[int | str, list[str]] = {}
        seen: list[torch.Tensor] = []

        def note(name: str, inputs: torch.Tensor) -> None:
            seen.append(inputs)
            readers.setdefault(name if name in self._experts else id(inputs), []).append(name)

        inside = {f"{block}.{n}" for block in self._experts for n in self._tasks_inside(block)}
        handles = [
            self._layer.get_submodule(name).register_forward_pre_hook(_pre_hook(name, note))
            for name in [*(n for n in self._tasks if n not in inside), *self._experts]
        ]
        try:
            self._layer(sample, *self._arguments.args, **self._arguments.kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return [tuple(dict.fromkeys(names)) for names in readers.values()]

    def _round_while_passing(
        self,
        hidden: torch.Tensor,
        exact: torch.Tensor | None,
        float_layer: torch.nn.Module | None,
        stages: Sequence[Stage],
    ) -> None:
        """One forward of everything: each stage is rounded the moment its input is there."""
        stops = [stage[0] for stage in stages]
        with ExitStack() as stack:
            forwards = stack.enter_context(self._forwards(self._layer, hidden, stops))
            others = None
            if exact is not None and float_layer is not None:
                others = stack.enter_context(self._forwards(float_layer, exact, stops))
            for stage in stages:
                work = self._stage(stage, hidden, float_layer)
                work.add(forwards, others)
                if others is not None:
                    others.release(stage[0])
                self.results |= work.round()
                forwards.release(stage[0])
            _move_on(hidden, forwards)
            if exact is not None and others is not None:
                _move_on(exact, others)

    def _round_by_replay(
        self,
        hidden: torch.Tensor,
        exact: torch.Tensor | None,
        float_layer: torch.nn.Module | None,
        stages: Sequence[Stage],
        samples_at_once: int,
    ) -> None:
        """For each stage, forward all samples up to its input; then once more to the end."""
        starts = range(0, len(hidden), samples_at_once)
        waves = [slice(start, start + samples_at_once) for start in starts]
        for stage in stages:
            work, first = self._stage(stage, hidden, float_layer), stage[0]
            for wave in waves:
                with ExitStack() as stack:
                    run = stack.enter_context(self._forwards(self._layer, hidden[wave], [first]))
                    others = None
                    if exact is not None and float_layer is not None:
                        others = self._forwards(float_layer, exact[wave], [first])
                        stack.enter_context(others)
                    work.add(run, others)
            self.results |= work.round()
        self._move_all_on(self._layer, hidden, samples_at_once)
        if exact is not None and float_layer is not None:
            self._move_all_on(float_layer, exact, samples_at_once)

    def _move_all_on(
        self, layer: torch.nn.Module, hidden: torch.Tensor, samples_at_once: int
    ) -> None:
        for wave in torch.split(hidden, samples_at_once):
            with self._forwards(layer, wave, []) as run:
                _move_on(wave, run)

    def _forwards(
        self, layer: torch.nn.Module, hidden: torch.Tensor, stops: Sequence[str]
    ) -> HaltedForwards:
        noted = sorted({norm for stop, norm in self._residuals.items() if stop in stops})
        arguments = self._arguments
        if self._cache is not None and layer is self._layer:  # a forward passes k and v as rounded
            arguments = self._cache.within(arguments)
        return HaltedForwards(
            layer, arguments, batches_of(hidden), stops, self._workers.threads, noted
        )

    def _stage(
        self, stage: Stage, hidden: torch.Tensor, float_layer: torch.nn.Module | None
    ) -> LinearStage | ExpertStage:
        first, settings, workers = stage[0], self._settings, self._workers
        if first not in self._experts:
            linears = {name: self._linear(name) for name in stage}
            tasks = {name: self._tasks[name] for name in stage}
            residual = self._residuals.get(first)
            return LinearStage(linears, tasks, self._weight, settings, workers, residual)
        exact = None if float_layer is None else find_experts(float_layer)[first]
        block = ExpertBlock(first, self._experts[first], exact, self._tasks_inside(first))
        return ExpertStage(block, hidden.shape[1], self._weight, settings, workers)


def batches_of(hidden: torch.Tensor) -> Batches:
    """`hidden` [samples, tokens, hidden] in parts of about 2048 tokens: views."""
    return torch.split(hidden, max(1, _BATCH_TOKENS // hidden.shape[1]))


def _move_on(hidden: torch.Tensor, forwards: HaltedForwards) -> None:
    for batch, output in zip(batches_of(hidden), forwards.outputs(), strict=True):
        batch.copy_(output)


def _pre_hook(
    name: str, hook: Callable[[str, torch.Tensor], None]
) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
    def call(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
        hook(name, args[0])

    return call
