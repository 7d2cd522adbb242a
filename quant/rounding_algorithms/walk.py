"""Columns in the order they are visited, as the loops over them want to read them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from quant.format.scheme import IntScheme, QuantizedScheme
from quant.rounding_algorithms.grid import Grid
from quant.rounding_algorithms.levels import level_range

_COLUMN_CHUNK = 128
"""What the compiled loops take at most; their work grows with it, that of the products shrinks."""


@dataclass(frozen=True)
class Walk:
    """A grid by visited column. order: int64 [in], the column visited at each step.

    scale, zero: float32 [groups, out]; group_of: int32 [in], by step.
    """

    order: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    group_of: torch.Tensor
    scheme: QuantizedScheme

    @staticmethod
    def over(grid: Grid, scheme: QuantizedScheme, order: torch.Tensor) -> "Walk":
        """`grid` [out, groups], walked in `order`."""
        groups = torch.div(order, scheme.group_size(len(order)), rounding_mode="floor")
        scale, zero = grid.scale.T.contiguous(), grid.zero.T.contiguous()
        return Walk(order, scale, zero, groups.to(torch.int32), scheme)

    @property
    def compiled(self) -> bool:
        """Whether the compiled loops know the scheme's levels: integers do not need a table."""
        return isinstance(self.scheme, IntScheme)

    def bounds(self) -> tuple[float, float]:
        """(lowest, highest) level."""
        return level_range(self.scheme)

    def grid(self, step: int) -> Grid:
        """Scale and zero [out] of the column visited at `step`."""
        group = int(self.group_of[step])
        return Grid(self.scale[group], self.zero[group])

    def chunks(self) -> Iterator[slice]:
        """Steps, a chunk at a time."""
        for start in range(0, len(self.order), _COLUMN_CHUNK):
            yield slice(start, min(start + _COLUMN_CHUNK, len(self.order)))

    def visited(self, rows: torch.Tensor) -> torch.Tensor:
        """[out, in] as [in, out] by step, contiguous."""
        return rows.T.contiguous().index_select(0, self.order)

    def plain(self, visited: torch.Tensor) -> torch.Tensor:
        """The inverse of `visited`."""
        return visited.index_select(0, self.order.argsort()).T.contiguous()


def permuted(matrix: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """A symmetric matrix with rows and columns in `order`. Whole rows are moved, twice, since that
    is many times faster than to pick elements."""
    return matrix.index_select(0, order).T.contiguous().index_select(0, order)
