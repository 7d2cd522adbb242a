"""The fold points of one decoder layer, found in its modules."""

from dataclasses import dataclass
from typing import Literal

import torch

from quant.transforms.layouts import Layout, LinearPoint, expand

PointKind = Literal["norm", "heads", "channels"]


@dataclass(frozen=True)
class FoldPoint:
    """Channels that `producer` gives out may be divided by a scale that `readers` multiply by.

    Names are those of modules inside the layer; `parent` is the smallest that holds all readers.
    channels: how many scales. kind "heads": the producer's `channels` are key-value heads of
    `head_dim`, each read by `repeats` query heads side by side.
    """

    kind: PointKind
    producer: str
    readers: tuple[str, ...]
    parent: str
    channels: int
    head_dim: int = 1
    repeats: int = 1

    def spread(self, scale: torch.Tensor) -> torch.Tensor:
        """Scales by channel [channels] -> by column of the readers [channels * repeats]."""
        heads = scale.reshape(-1, 1, self.head_dim)
        return heads.expand(-1, self.repeats, -1).reshape(-1)

    def gather(self, columns: torch.Tensor, largest: bool = False) -> torch.Tensor:
        """Values by column of the readers -> by channel: the mean, or the largest, over the query
        heads of one value head, since all of them read the same channel."""
        heads = columns.reshape(-1, self.repeats, self.head_dim)
        return (heads.amax(1) if largest else heads.mean(1)).reshape(-1)


def fold_points(layer: torch.nn.Module, layout: Layout, head_dim: int) -> list[FoldPoint]:
    """Every fold point of `layer`, in the order of execution.

    A point is left out where a module of it is missing (experts held as one tensor), where the
    shapes do not belong together, or where its norm has a bias.
    """
    modules = dict(layer.named_modules())
    points = []
    for spec in layout.norms:
        readers = expand(spec.readers, modules)
        norm = modules.get(spec.norm)
        if readers is None or norm is None or getattr(norm, "bias", None) is not None:
            continue
        width = _shape(modules[readers[0]])[1]
        points.append(FoldPoint("norm", spec.norm, readers, spec.parent, width))
    for linear in layout.linears:
        points += _linear_points(modules, linear, head_dim)
    order = {name: index for index, name in enumerate(modules)}
    return sorted(points, key=lambda p: min(order[name] for name in p.readers))


def _linear_points(
    modules: dict[str, torch.nn.Module], spec: LinearPoint, head_dim: int
) -> list[FoldPoint]:
    producers, readers = expand([spec.producer], modules), expand([spec.reader], modules)
    if producers is None or readers is None:
        return []
    points = []
    for producer, reader in zip(producers, readers, strict=True):
        rows, columns = _shape(modules[producer])[0], _shape(modules[reader])[1]
        if spec.heads and columns % rows == 0 and rows % head_dim == 0:
            repeats = columns // rows
            point = FoldPoint("heads", producer, (reader,), reader, rows, head_dim, repeats)
            points.append(point)
        elif not spec.heads and rows == columns:
            points.append(FoldPoint("channels", producer, (reader,), reader, rows))
    return points


def _shape(module: torch.nn.Module) -> tuple[int, int]:
    rows, columns = module.get_parameter("weight").shape
    return rows, columns
