"""One Program for each of several ranks that share a model (tensor parallelism).

Each rank has some of the heads and some of the gated columns: the linears before them lose output
rows, the linears behind them lose input columns, and what these give is summed over the ranks
(Shoeybi et al. 2019, section 3). Embeddings, norms and the head are whole on every rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.dataflow import inputs
from compile.program import (
    Add,
    Attend,
    DecoderSizes,
    GatedAct,
    Linear,
    Moe,
    Op,
    Program,
    Rope,
    Slice,
    SumRanks,
    Value,
)
from quant.format.errors import InputError, UnsupportedModelError
from quant.format.kv_cache import KvCacheScheme, KvScales, kv_cache_of, kv_scales_of
from quant.format.scheme import FloatScheme, Scheme
from quant.format.tensor import QuantizedTensor, Weight, WeightSource

Spans = tuple[tuple[int, int], ...]
"""Runs [start, end) of output rows or input columns, in order."""


@dataclass(frozen=True)
class Share:
    """rank: which of `ranks` this is, counted from 0."""

    rank: int
    ranks: int

    def of(self, count: int, start: int = 0) -> tuple[int, int]:
        """This rank's part of `count` equal things that begin at `start`."""
        part = count // self.ranks
        return start + self.rank * part, start + (self.rank + 1) * part


@dataclass(frozen=True)
class SplitProgram:
    """rows, columns: which of a weight's output rows or input columns this rank has, by name;
    weights that are not named are whole."""

    program: Program
    rows: Mapping[str, Spans]
    columns: Mapping[str, Spans]


def split_program(program: Program, share: Share) -> SplitProgram:
    """The part of `program` that one rank runs.

    Raises InputError where heads, columns or groups do not divide evenly, UnsupportedModelError for
    mixtures of experts. Inputs that are rounded by one scale per token need the largest number of
    their row over all ranks, which executors ask the other ranks for.
    """
    return _Splitter(program, share).split()


class SplitWeights:
    """A WeightSource that gives a rank its part of each weight."""

    def __init__(self, source: WeightSource, split: SplitProgram) -> None:
        self._source = source
        self._split = split

    def names(self) -> list[str]:
        return list(self._source.names())

    def shape(self, name: str) -> tuple[int, ...]:
        shape = list(self._source.shape(name))
        for axis, spans in enumerate((self._split.rows.get(name), self._split.columns.get(name))):
            if spans is not None:
                shape[axis] = sum(end - start for start, end in spans)
        return tuple(shape)

    def scheme(self, name: str) -> Scheme:
        return self._source.scheme(name)

    def load(self, name: str) -> Weight:
        weight = self._source.load(name)
        rows, columns = self._split.rows.get(name), self._split.columns.get(name)
        if rows is not None:
            weight = _rows(weight, rows)
        if columns is not None:
            weight = _columns(weight, columns)
        return weight

    @property
    def kv_cache(self) -> KvCacheScheme | None:
        return kv_cache_of(self._source)

    def kv_scales(self, layer: int) -> KvScales | None:
        """Of the whole layer, whose heads share them."""
        return kv_scales_of(self._source, layer)


class _Splitter:
    def __init__(self, program: Program, share: Share) -> None:
        self._program = program
        self._share = share
        self._makers: dict[Value, Op] = {op.out: op for op in program.ops}
        self._rows: dict[str, Spans] = {}
        self._columns: dict[str, Spans] = {}
        self._widths: dict[Value, int] = {}
        """Of values that a rank has a part of."""
        self._starts: dict[Value, int] = {}
        """Where slices of a fused value begin in a rank's part of it."""

    def split(self) -> SplitProgram:
        self._check()
        for op in self._program.ops:
            if isinstance(op, Attend):
                self._shard(op.q, op.heads, op.head_dim)
                self._shard(op.k, op.kv_heads, op.head_dim)
                self._shard(op.v, op.kv_heads, op.head_dim)
                self._widths[op.out] = self._part(op.heads) * op.head_dim
            elif isinstance(op, GatedAct):
                width = self._width_of_gate(op)
                self._shard(op.gate, width, 1)
                self._shard(op.up, width, 1)
                self._widths[op.out] = self._part(width)
        ops = [each for op in self._program.ops for each in self._of_rank(op)]
        program = replace(self._program, ops=tuple(ops), sizes=self._sizes())
        return SplitProgram(program, self._rows, self._columns)

    def _check(self) -> None:
        sizes, ranks = self._program.sizes, self._share.ranks
        if any(isinstance(op, Moe) for op in self._program.ops):
            raise UnsupportedModelError(
                f"{self._program.family} models mix experts, which are not split over processes; "
                "serve it with one"
            )
        for count, what in (
            (sizes.heads, "query heads"),
            (sizes.kv_heads, "key-value heads"),
            (sizes.intermediate_size, "gated columns"),
        ):
            if count % ranks:
                raise InputError(
                    f"the model's {count} {what} cannot be shared evenly by {ranks} processes; "
                    f"choose a number that divides {count}"
                )

    def _sizes(self) -> DecoderSizes:
        sizes = self._program.sizes
        return replace(
            sizes,
            heads=self._part(sizes.heads),
            kv_heads=self._part(sizes.kv_heads),
            intermediate_size=self._part(sizes.intermediate_size),
        )

    def _part(self, count: int) -> int:
        return count // self._share.ranks

    def _width_of_gate(self, op: GatedAct) -> int:
        maker = self._makers[op.gate]
        assert isinstance(maker, Linear | Slice), "a gate comes from a product"
        return maker.out_features if isinstance(maker, Linear) else maker.size

    def _shard(self, value: Value, units: int, size: int) -> None:
        """Follow `value`, `units` runs of `size` columns, back to the product that makes it."""
        maker = self._makers[value]
        self._widths[value] = self._part(units) * size
        if isinstance(maker, Linear):
            self._take(maker, 0, units, size)
            return
        if isinstance(maker, Slice):
            product = self._makers[maker.x]
            assert isinstance(product, Linear), "slices are parts of a product"
            self._starts[value] = self._taken(product)
            self._take(product, maker.start, units, size)
            self._widths[product.out] = self._taken(product)
            return
        (source,) = inputs(maker)
        self._shard(source, units, size)

    def _take(self, product: Linear, start: int, units: int, size: int) -> None:
        first, last = self._share.of(units)
        span = (start + first * size, start + last * size)
        taken = (*self._rows.get(product.weight, ()), span)
        self._rows[product.weight] = taken
        if product.bias is not None:
            self._rows[product.bias] = taken

    def _taken(self, product: Linear) -> int:
        return sum(end - start for start, end in self._rows.get(product.weight, ()))

    def _of_rank(self, op: Op) -> list[Op]:
        part = self._part
        match op:
            case Linear() if op.weight in self._rows:
                return [replace(op, out_features=self._taken(op))]
            case Linear() if op.x in self._widths:
                return self._summed(op)
            case Slice() if op.out in self._starts:
                return [replace(op, start=self._starts[op.out], size=self._widths[op.out])]
            case Rope():
                return [replace(op, heads=part(op.heads))]
            case Attend():
                return [replace(op, heads=part(op.heads), kv_heads=part(op.kv_heads))]
            case Add() if op.a in self._widths or op.b in self._widths:
                raise AssertionError("a sum reads what only one rank has")
            case _:
                return [op]

    def _summed(self, op: Linear) -> list[Op]:
        """A product over some of the input columns; one rank adds the bias."""
        _check_columns(op, self._share.ranks)
        self._columns[op.weight] = (self._share.of(op.in_features),)
        bias = op.bias if self._share.rank == 0 else None
        own = f"{op.out}.of_rank"
        product = replace(op, out=own, bias=bias, in_features=self._part(op.in_features))
        return [product, SumRanks(op.out, own)]


def _check_columns(op: Linear, ranks: int) -> None:
    scheme = op.scheme
    if isinstance(scheme, FloatScheme):
        return
    size = scheme.group_size(op.in_features)
    part = op.in_features // ranks
    if size < op.in_features and part % size:
        raise InputError(
            f"tensor {op.weight} has groups of {size} columns, of which {ranks} processes cannot "
            f"have {op.in_features} columns evenly; choose fewer processes"
        )


def _picked(spans: Spans) -> npt.NDArray[np.intp]:
    return np.concatenate([np.arange(start, end, dtype=np.intp) for start, end in spans])


def _rows(weight: Weight, spans: Spans) -> Weight:
    picked = _picked(spans)
    if isinstance(weight, QuantizedTensor):
        return weight.take_rows(picked)
    return np.ascontiguousarray(weight[picked])


def _columns(weight: Weight, spans: Spans) -> Weight:
    ((start, end),) = spans
    if not isinstance(weight, QuantizedTensor):
        return np.ascontiguousarray(weight[:, start:end])
    codes = np.ascontiguousarray(weight.codes[:, start:end])
    if weight.group_index is not None:
        return replace(weight, codes=codes, group_index=weight.group_index[start:end], blocks=None)
    columns = weight.shape[1]
    size = weight.scheme.group_size(columns)
    if size >= columns:
        return replace(weight, codes=codes, blocks=None)
    groups = slice(start // size, -(-end // size))

    def part(numbers: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
        return None if numbers is None else np.ascontiguousarray(numbers[:, groups])

    scale = part(weight.scale)
    assert scale is not None
    return replace(
        weight,
        codes=codes,
        scale=scale,
        zero_point=part(weight.zero_point),
        minimum=part(weight.minimum),
        blocks=None,
    )
