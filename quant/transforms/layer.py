"""The transforms of one decoder layer, before it is rounded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from quant.rounding_algorithms.factor import NotPositiveDefiniteError, factor
from quant.rounding_algorithms.levels import level_range
from quant.statistics import InputMoments
from quant.tasks import LinearTask, RoundingSettings
from quant.transforms.awq import awq_candidates, relative_magnitude
from quant.transforms.balance import RoundedRows, balanced_scale
from quant.transforms.clip import clip_groups
from quant.transforms.fold import FoldedLayer
from quant.transforms.layouts import layout_of
from quant.transforms.nearest import Nearest
from quant.transforms.objective import BlockError
from quant.transforms.observe import (
    Call,
    InputStatistics,
    LayerForward,
    input_statistics,
    record_calls,
    subset,
)
from quant.transforms.points import FoldPoint, fold_points
from quant.transforms.settings import LayerTransforms
from quant.transforms.smoothquant import ALPHAS, smoothing_scale
from quant.transforms.trial import Trial, best_scale
from quant.workers import Workers, run_jobs

_BATCH_TOKENS = 2048
_CLIP_TOKENS = 512
_INPUT_TOKENS = 2048
"""Whose rounding balancing looks at."""
_INT8_LEVELS = 127.5
_NOT_CLIPPED = ("self_attn.q_proj", "self_attn.k_proj")
"""Their outputs are multiplied with each other, which makes errors of theirs costly."""


@dataclass(frozen=True)
class TransformedLayer:
    """What became of a layer; names are those inside it.

    weights: float32 weights of linears that changed and are still to be rounded. written: other
    parameters that changed, as they are to be stored. chosen: what was done to each linear.
    """

    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    written: Mapping[str, torch.Tensor] = field(default_factory=dict)
    chosen: Mapping[str, str] = field(default_factory=dict)


@torch.no_grad()
def transform_layer(
    layer: torch.nn.Module,
    forward: LayerForward,
    hidden: torch.Tensor,
    tasks: Mapping[str, LinearTask],
    settings: RoundingSettings,
    transforms: LayerTransforms,
    stored: Mapping[str, torch.dtype],
    workers: Workers | None = None,
) -> TransformedLayer:
    """Rescale the layer's parameters in place so that they round well; its function stays.

    hidden: [samples, tokens, hidden] before the layer; statistics are taken over all of it,
    searches look at evenly spaced samples. tasks: linears to be rounded, by name inside the layer.
    stored: dtypes of its parameters in the checkpoint, by name inside it.
    Clipping, where asked for, is the one thing that changes the function.
    """
    layout = layout_of(transforms.model_type)
    folded = FoldedLayer(layer, tasks.keys(), stored, layout.offset)
    points = fold_points(layer, layout, transforms.head_dim)
    turn = _Turn(
        layer=layer,
        forward=forward,
        hidden=hidden,
        points=[p for p in points if tasks.keys() & set(p.readers)],
        nearest=Nearest(tasks, settings),
        folded=folded,
        transforms=transforms,
        workers=workers,
    )
    if transforms.smoothquant is not None:
        turn.smooth()
    if transforms.balance is not None:
        turn.balance()
    if transforms.awq is not None:
        turn.scale_and_clip()
    return TransformedLayer(folded.weights, folded.written, turn.chosen)


@dataclass(frozen=True)
class _Turn:
    """One layer's transforms, one after the other."""

    layer: torch.nn.Module
    forward: LayerForward
    hidden: torch.Tensor
    points: Sequence[FoldPoint]
    nearest: Nearest
    folded: FoldedLayer
    transforms: LayerTransforms
    workers: Workers | None
    chosen: dict[str, str] = field(default_factory=dict)

    def smooth(self) -> None:
        asked = self.transforms.smoothquant
        assert asked is not None
        points = [p for p in self.points if p.kind == "norm" or asked.outputs]
        statistics, calls = self._observe(points)
        alphas = ALPHAS if asked.alpha is None else (asked.alpha,)
        for point, seen in statistics.items():
            most = point.gather(seen.most, largest=True)
            weights = [self.folded.weight(name).abs().amax(0) for name in point.readers]
            largest = point.gather(torch.stack(weights).amax(0), largest=True)
            scales = {f"smoothquant alpha {a:g}": smoothing_scale(most, largest, a) for a in alphas}
            if asked.alpha is not None:
                ((name, scale),) = scales.items()
                self._apply(point, name, self.folded.storable(point, scale))
            elif point.parent in calls:
                trial = self._trial(point, calls[point.parent])
                choice = best_scale(trial, scales, self.workers, activations=True)
                self._apply(point, str(choice), choice.scale)

    def balance(self) -> None:
        asked = self.transforms.balance
        assert asked is not None
        sample = subset(self.hidden, asked.tokens)
        firsts = [point.readers[0] for point in self.points]
        calls = record_calls(self.layer, self.forward, sample, firsts)
        points = [point for point in self.points if point.readers[0] in calls]
        inputs = [calls[point.readers[0]].args[0] for point in points]
        jobs = [
            partial(balanced_scale, point, self._rounded(point, seen))
            for point, seen in zip(points, inputs, strict=True)
        ]
        for point, scale in zip(points, run_jobs(jobs, self.workers), strict=True):
            if scale is not None:
                self._apply(point, "balanced", self.folded.storable(point, scale))

    def _rounded(self, point: FoldPoint, inputs: torch.Tensor) -> list[RoundedRows]:
        """Weights of the point's readers, and their inputs, as far as they are to be rounded.
        inputs: [samples, tokens, columns], or [tokens, columns]."""
        costs, rounded = self._costs(point.readers, inputs), list[RoundedRows]()
        spread = torch.zeros_like(costs)
        for name in point.readers:
            task, weight = self.nearest.tasks.get(name), self.folded.weight(name)
            if task is None:
                continue
            low, high = level_range(task.scheme)
            size = task.scheme.group_size(weight.shape[1])
            rounded.append(RoundedRows(weight, size, costs, (high - low) / 2))
            if task.scheme.activation is not None and task.scheme.activation.numbers == "int8":
                spread += weight.square().sum(0)
        if float(spread.max()) > 0.0:
            rows = _alike(inputs.reshape(-1, inputs.shape[-1]).float())
            part = RoundedRows(rows, rows.shape[1], spread / len(rows), _INT8_LEVELS, inverse=True)
            rounded.append(part)
        return rounded

    def _costs(self, readers: Sequence[str], inputs: torch.Tensor) -> torch.Tensor:
        """float32 [columns]: what a squared error in each column of `readers` costs in the end,
        which error feedback makes less. inputs: [samples, tokens, columns], or [tokens, columns].
        """
        settings = self.nearest.settings
        share = settings.first_token_share
        moments = InputMoments(inputs.shape[-1], share, self.workers, find_absmax=False)
        moments.add([inputs])
        hessian = moments.hessian()
        plain = hessian.diagonal()
        if all(
            self.nearest.tasks[n].algorithm == "rtn" for n in readers if n in self.nearest.tasks
        ):
            return plain
        try:
            return factor(
                hessian, settings.damping, settings.by_activation, self.workers
            ).importance()
        except NotPositiveDefiniteError:
            return plain

    def scale_and_clip(self) -> None:
        asked = self.transforms.awq
        assert asked is not None
        statistics, calls = self._observe(self.points)
        for point, seen in statistics.items():
            if point.parent not in calls:
                continue
            trial = self._trial(point, calls[point.parent])
            weights = trial.weights()
            sizes = [
                self.nearest.group_size(name, w.shape[1])
                for name, w in zip(point.readers, weights, strict=True)
            ]
            relative = point.gather(relative_magnitude(weights, sizes))
            scales = awq_candidates(point.gather(seen.mean()), relative, asked)
            choice = best_scale(trial, scales, self.workers)
            self._apply(point, str(choice), choice.scale)
        if asked.clip:
            self._clip()

    def _observe(
        self, points: Sequence[FoldPoint]
    ) -> tuple[dict[FoldPoint, InputStatistics], dict[str, Call]]:
        batches = torch.split(self.hidden, max(1, _BATCH_TOKENS // self.hidden.shape[1]))
        statistics = input_statistics(self.layer, self.forward, batches, points, self.workers)
        return statistics, self._calls([point.parent for point in points])

    def _calls(self, names: Sequence[str]) -> dict[str, Call]:
        """How each module is called for the samples that searches look at."""
        sample = subset(self.hidden, self.transforms.tokens)
        return record_calls(self.layer, self.forward, sample, names)

    def _trial(self, point: FoldPoint, call: Call) -> Trial:
        module = self.layer.get_submodule(point.parent)
        inside = f"{point.parent}."
        exact = {
            f"{name}.weight".removeprefix(inside): weight
            for name, weight in self.folded.weights.items()
            if f"{name}.".startswith(inside)
        }
        error = BlockError(module, call, self.nearest.settings.first_token_share, exact)
        return Trial(point, self.folded, self.nearest, error)

    def _apply(self, point: FoldPoint, name: str, scale: torch.Tensor | None) -> None:
        for reader in point.readers:
            self._note(reader, name)
        if scale is not None:
            self.folded.apply(point, scale)

    def _clip(self) -> None:
        """At most `_CLIP_TOKENS` evenly spaced tokens of the sample tell what clipping costs."""
        names = [name for name in self.nearest.tasks if name not in _NOT_CLIPPED]
        for name, call in self._calls(names).items():
            inputs = call.args[0].reshape(-1, call.args[0].shape[-1]).float()
            inputs = inputs[:: max(1, -(-len(inputs) // _CLIP_TOKENS))]
            weight = clip_groups(name, self.folded.weight(name), inputs, self.nearest)
            self.folded.set_rounded(name, weight)
            self._note(name, "clipped")

    def _note(self, name: str, what: str) -> None:
        if name in self.nearest.tasks:
            self.chosen[name] = f"{self.chosen[name]}; {what}" if name in self.chosen else what


def _alike(rows: torch.Tensor) -> torch.Tensor:
    """Some of `rows` [tokens, columns], all as large as the middle one: a token's rounding matters
    beside its own size, and the few that are a thousand times larger would be all that counts."""
    some = rows[:: max(1, -(-len(rows) // _INPUT_TOKENS))]
    size = some.norm(dim=1, keepdim=True)
    larger: torch.Tensor = size.median() / size.clamp(min=torch.finfo(torch.float32).tiny)
    return some * larger
