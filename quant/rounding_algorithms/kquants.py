"""ggml's blocks for the algorithms that know the whole Hessian: their grid, and its refit.

All scales of a block come from one or two float16 factors, so that no scale is free: factors are
solved for together, and the nested scales of groups are moved one after the other, each to the
whole number of least loss while everything else stands still.
"""

from dataclasses import dataclass

import torch

from quant.format.ggml_grid import BlockGrid
from quant.format.ggml_kblocks import LAYOUTS as NESTED
from quant.format.ggml_search import search_blocks
from quant.format.gguf_types import TYPE_BY_NAME, GgmlType
from quant.format.scheme import QuantizedScheme
from quant.rounding_algorithms.grid import Grid

_RIDGE = 1e-6


def ggml_type(scheme: QuantizedScheme) -> GgmlType:
    """The block type of a scheme that has one."""
    assert scheme.ggml_type is not None
    return TYPE_BY_NAME[scheme.ggml_type]


def search_block_grid(
    weight: torch.Tensor, importance: torch.Tensor, scheme: QuantizedScheme
) -> Grid:
    """The grid of least sum(importance * error**2) that the blocks of `scheme` can hold.

    weight: float32 [out, in]; importance: float32 [in].
    """
    found = search_blocks(ggml_type(scheme), weight.numpy(), importance.float().numpy())
    return _as_grid({name: torch.from_numpy(part) for name, part in found.parts().items()}, scheme)


def refit_blocks(
    weight: torch.Tensor,
    levels: torch.Tensor,
    grid: Grid,
    hessian: torch.Tensor,
    scheme: QuantizedScheme,
) -> Grid:
    """The scales, as blocks can hold them, of small (w - q) H (w - q)^T for levels that stay.

    Rows may end worse than they began, since factors are rounded: keep the better by row.
    """
    state = _Refit(weight, levels, grid, hessian, scheme)
    if state.nested:
        state.move_nested_scales()
    state.solve_factors()
    return _as_grid(state.parts, scheme)


def _as_grid(parts: dict[str, torch.Tensor], scheme: QuantizedScheme) -> Grid:
    arrays = {name: part.numpy() for name, part in parts.items()}
    blocks = BlockGrid(ggml_type(scheme), **arrays)
    scale, least = torch.from_numpy(blocks.scale()), blocks.minimum()
    zero = torch.zeros_like(scale) if least is None else -torch.from_numpy(least) / scale
    return Grid(scale, zero, parts)


@dataclass
class _Refit:
    """levels: float32 [out, in]; what is lost and its gradient follow every change."""

    weight: torch.Tensor
    levels: torch.Tensor
    grid: Grid
    hessian: torch.Tensor
    scheme: QuantizedScheme

    def __post_init__(self) -> None:
        kind = ggml_type(self.scheme)
        self.parts = dict(self.grid.parts)
        self.nested = kind in NESTED
        self.block = kind.block
        self.group = self.scheme.group_size(self.block)
        self.steps = self.levels.reshape(len(self.levels), -1, self.group)

    def move_nested_scales(self) -> None:
        """One round over the groups: each nested scale, with the minimum that suits it."""
        wide = self.grid.columns(self.scheme, self.weight.shape[1])
        gradient = (self.weight - (self.levels - wide.zero) * wide.scale) @ self.hessian
        for name in ("sub_scales", "sub_minimums"):
            if name in self.parts:
                self.parts[name] = self.parts[name].clone()
        for group in range(self.steps.shape[1]):
            columns = slice(group * self.group, (group + 1) * self.group)
            change = self._move(group, gradient[:, columns], self.hessian[columns, columns])
            gradient -= change @ self.hessian[columns]

    def _move(self, group: int, gradient: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
        """Move one group's whole numbers; returns how its values change, float32 [out, size]."""
        layout, block = NESTED[ggml_type(self.scheme)], group * self.group // self.block
        sub = self.parts["sub_scales"]
        along = self.steps[:, group] * self.parts["d"][:, block, None]
        spread = along @ hessian
        a, p = (spread * along).sum(-1), (gradient * along).sum(-1)
        scale_step, least_step = p / a, torch.zeros_like(p)
        down = -self.parts["m"][:, block] if "m" in self.parts else None
        if down is not None:
            b, c = spread.sum(-1) * down, hessian.sum() * down * down
            q = gradient.sum(-1) * down
            scale_step = (p * c - q * b) / (a * c - b * b)
        old = sub[:, group]
        new = _whole(old + scale_step, old, layout.lowest, layout.highest)
        new = torch.where(new == 0, old, new)
        scale_step = new - old
        if down is not None:
            least = self.parts["sub_minimums"][:, group]
            least_step = _whole(least + (q - b * scale_step) / c, least, 0, layout.highest) - least
        gain = 2 * p * scale_step - a * scale_step * scale_step
        if down is not None:
            gain += least_step * (2 * q - 2 * b * scale_step - c * least_step)
        keep = (gain > 0).float()
        sub[:, group] += scale_step * keep
        change = along * (scale_step * keep)[:, None]
        if down is not None:
            self.parts["sub_minimums"][:, group] += least_step * keep
            change = change + (least_step * keep * down)[:, None]
        return change

    def solve_factors(self) -> None:
        """d and m of all blocks of a row at once: the normal equations of what is still lost."""
        grid = _as_grid(self.parts, self.scheme)
        wide = grid.columns(self.scheme, self.weight.shape[1])
        gradient = (self.weight - (self.levels - wide.zero) * wide.scale) @ self.hessian
        directions = self._directions()
        rows, names = len(self.weight), list(directions)
        shape = (rows, -1, self.block)
        target = [(gradient * d).reshape(shape).sum(-1) for d in directions.values()]
        matrix = torch.cat([self._products(d, directions) for d in directions.values()], dim=1)
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        diagonal.add_(diagonal.mean(-1, keepdim=True) * _RIDGE + torch.finfo(torch.float32).tiny)
        step = torch.linalg.solve(matrix.double(), torch.cat(target, dim=1).double()).float()
        for name, change in zip(names, step.chunk(len(names), dim=1), strict=True):
            self.parts[name] = self._stored(name, self.parts[name] + change)

    def _directions(self) -> dict[str, torch.Tensor]:
        """How values move with each factor, float32 [out, in]: d, and m where there is one."""
        steps, ones = self.steps, torch.ones_like(self.steps)
        if self.nested:
            steps = steps * self.parts["sub_scales"][..., None]
        found = {"d": steps.reshape_as(self.levels)}
        if "m" in self.parts:
            if self.nested:
                ones = -self.parts["sub_minimums"][..., None].expand_as(self.steps)
            found["m"] = ones.reshape_as(self.levels)
        return found

    def _products(self, direction: torch.Tensor, others: dict[str, torch.Tensor]) -> torch.Tensor:
        """float32 [out, blocks, all factors]: u H v for each block's part u of `direction`."""
        rows, columns = direction.shape
        count = columns // self.block
        products = torch.empty(rows, count, count * len(others))
        for block in range(count):
            part = slice(block * self.block, (block + 1) * self.block)
            spread = direction[:, part] @ self.hessian[part]
            along = [(spread * o).reshape(rows, count, -1).sum(-1) for o in others.values()]
            products[:, block] = torch.cat(along, dim=1)
        return products

    def _stored(self, name: str, wanted: torch.Tensor) -> torch.Tensor:
        """Rounded to float16; the old number where a factor would change its sign or vanish."""
        old = self.parts[name]
        new = wanted.half().float()
        usable = torch.isfinite(new) & (new != 0)
        if name == "d" or self.nested:
            usable &= new * old > 0
        return torch.where(usable, new, old)


def _whole(wanted: torch.Tensor, old: torch.Tensor, lowest: float, highest: float) -> torch.Tensor:
    """The nearest whole number in range; `old` where there is none."""
    return torch.where(torch.isfinite(wanted), wanted.round().clamp(lowest, highest), old)
