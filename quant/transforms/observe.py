"""What a layer's fold points see of the calibration set."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from quant.transforms.points import FoldPoint
from quant.workers import Workers, run_jobs

LayerForward = Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]
"""(a decoder layer, hidden states [samples, tokens, hidden]) -> its output."""


@dataclass(frozen=True)
class InputStatistics:
    """Of each channel that reaches a point's readers: sum float64 [columns] of |x|, most float32
    [columns] the largest |x|, over `tokens` tokens."""

    sum: torch.Tensor
    most: torch.Tensor
    tokens: int

    @classmethod
    def of(cls, inputs: torch.Tensor) -> "InputStatistics":
        """inputs: [..., columns], any float type."""
        size = inputs.reshape(-1, inputs.shape[-1]).float().abs()
        return cls(size.sum(0, dtype=torch.float64), size.amax(0), len(size))

    def __add__(self, other: "InputStatistics") -> "InputStatistics":
        most = torch.maximum(self.most, other.most)
        return InputStatistics(self.sum + other.sum, most, self.tokens + other.tokens)

    def mean(self) -> torch.Tensor:
        """float32 [columns]: mean |x|."""
        return (self.sum / self.tokens).float()


@dataclass(frozen=True)
class Call:
    """How a module was called."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def input_statistics(
    layer: torch.nn.Module,
    forward: LayerForward,
    batches: Iterable[torch.Tensor],
    points: Sequence[FoldPoint],
    workers: Workers | None,
) -> dict[FoldPoint, InputStatistics]:
    """Statistics over all batches, by point; those that no token reached are missing."""
    jobs = [partial(_batch_statistics, layer, forward, batch, points) for batch in batches]
    total: dict[FoldPoint, InputStatistics] = {}
    for seen in run_jobs(jobs, workers):
        for point, part in seen.items():
            total[point] = total[point] + part if point in total else part
    return {point: total[point] for point in points if point in total}


def _batch_statistics(
    layer: torch.nn.Module,
    forward: LayerForward,
    batch: torch.Tensor,
    points: Sequence[FoldPoint],
) -> dict[FoldPoint, InputStatistics]:
    calls = record_calls(layer, forward, batch, [point.readers[0] for point in points])
    return {
        point: InputStatistics.of(calls[point.readers[0]].args[0])
        for point in points
        if point.readers[0] in calls
    }


def record_calls(
    layer: torch.nn.Module, forward: LayerForward, sample: torch.Tensor, names: Iterable[str]
) -> dict[str, Call]:
    """How each module of `names` is called while `sample` goes through the layer; one that is not
    reached is missing."""
    twin, calls = sharing_copy(layer), dict[str, Call]()

    def record(name: str) -> Callable[..., None]:
        def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[name] = Call(args, kwargs)

        return hook

    for name in dict.fromkeys(names):
        twin.get_submodule(name).register_forward_pre_hook(record(name), with_kwargs=True)
    forward(twin, sample)
    return calls


def subset(hidden: torch.Tensor, tokens: int) -> torch.Tensor:
    """Whole samples of `hidden` [samples, tokens, hidden], evenly spaced: about `tokens` tokens,
    at least one sample."""
    count = min(len(hidden), max(1, tokens // hidden.shape[1]))
    picked = torch.arange(count) * len(hidden) // count
    return hidden[picked]


def sharing_copy(module: torch.nn.Module) -> torch.nn.Module:
    """The same module over the same tensors: hooks and replaced parameters of the copy leave the
    original alone, so that several threads may have their own."""
    shared: list[object] = [*module.parameters(), *module.buffers()]
    shared += [part.config for part in module.modules() if hasattr(part, "config")]
    return copy.deepcopy(module, {id(item): item for item in shared})
