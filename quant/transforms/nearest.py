"""Nearest rounding of a linear's weight, as searches for transforms try it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from quant.rounding_algorithms.grid import decode, nearest_levels
from quant.rounding_algorithms.rtn import choose_grid
from quant.tasks import LinearTask, RoundingSettings, ScaleChoice


@dataclass(frozen=True)
class Nearest:
    """Rounds by the scheme of each linear, with scales as they will be stored.

    tasks: by name inside the layer. scales: "range" for speed, or what the run itself uses.
    """

    tasks: Mapping[str, LinearTask]
    settings: RoundingSettings
    scales: ScaleChoice = "range"

    def __call__(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """float32 [out, in]: what the rounded weight is worth; `weight` itself without a task."""
        task = self.tasks.get(name)
        if task is None:
            return weight
        dtype, lowest = self.settings.scale_dtype, self.settings.lowest_zero
        grid = choose_grid(weight, None, task.scheme, dtype, self.scales, lowest)
        wide = grid.columns(task.scheme, weight.shape[1])
        return decode(nearest_levels(weight, wide, task.scheme), wide)

    def group_size(self, name: str, columns: int) -> int:
        """Columns that share a scale in the linear `name`."""
        task = self.tasks.get(name)
        return columns if task is None else task.scheme.group_size(columns)
