"""What a fold point costs at some scale, by the output of the block around it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from quant.format.scheme import ActivationScheme
from quant.transforms.fold import FoldedLayer
from quant.transforms.nearest import Nearest
from quant.transforms.objective import BlockError
from quant.transforms.points import FoldPoint
from quant.workers import Workers, run_jobs


@dataclass(frozen=True)
class Trial:
    """Rounds the readers of `point` at a scale and asks `error` what becomes of the output."""

    point: FoldPoint
    folded: FoldedLayer
    nearest: Nearest
    error: BlockError

    def weights(self) -> list[torch.Tensor]:
        """float32 weights of the readers, as folded so far."""
        return [self.folded.weight(name) for name in self.point.readers]

    def __call__(self, scale: torch.Tensor | None, activations: bool = False) -> float:
        """The error with weights rounded at `scale` (float32 [channels]), None: as they are.

        activations: inputs are rounded too where the readers' schemes say so.
        """
        columns = None if scale is None else self.point.spread(scale)
        weights, scales, schemes = {}, {}, dict[str, ActivationScheme]()
        for reader in self.point.readers:
            name = self._inside(reader)
            weight = self.folded.weight(reader)
            if columns is None:
                rounded = self.nearest(reader, weight)
            else:
                rounded = self.nearest(reader, weight * columns) / columns
                scales[name] = columns
            weights[f"{name}.weight" if name else "weight"] = rounded
            task = self.nearest.tasks.get(reader)
            if activations and task is not None and task.scheme.activation is not None:
                schemes[name] = task.scheme.activation
        return self.error(weights, scales, schemes)

    def _inside(self, reader: str) -> str:
        """The reader's name inside the parent; empty where it is the parent itself."""
        return reader.removeprefix(self.point.parent).removeprefix(".")


@dataclass(frozen=True)
class Choice:
    """scale None: no scaling. error: of the block; unscaled_error: without any scaling."""

    name: str
    scale: torch.Tensor | None
    error: float
    unscaled_error: float

    def __str__(self) -> str:
        if self.scale is None:
            return "unscaled"
        return f"{self.name}: error {self.error / self.unscaled_error:.3f} of that without"


def best_scale(
    trial: Trial,
    candidates: Mapping[str, torch.Tensor],
    workers: Workers | None,
    activations: bool = False,
) -> Choice:
    """The candidate of least error, and none unless it is better than no scaling at all. Only a
    strict improvement counts, so that ties go to the earlier."""
    scales: dict[str, torch.Tensor | None] = {"none": None}
    for name, candidate in candidates.items():
        scales[name] = trial.folded.storable(trial.point, candidate)
    jobs = [partial(trial, scale, activations) for scale in scales.values()]
    errors = dict(zip(scales, run_jobs(jobs, workers), strict=True))
    chosen = min(errors, key=errors.__getitem__)
    return Choice(chosen, scales[chosen], errors[chosen], errors["none"])
