"""Ranks of one model, as threads: together they give what one process gives."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from compile.model import Model
from compile.program import Linear
from quant.format.errors import InputError, UnsupportedModelError
from quant.format.scheme import ActivationScheme, IntScheme, PerGroup
from quant.format.tensor import QuantizedTensor, Weight
from runtime.engine.batch import StepBatch
from runtime.executors.torch import TorchExecutor
from runtime.parallel.part import part_of
from tests.runtime.kernels.weights import quantized
from tests.tiny import tiny_config, tiny_model, tiny_shapes

TOKENS = np.arange(5, 22, dtype=np.int32)
PAGE_SIZE = 8


Reduce = Callable[[Tensor], Tensor]


class Meeting:
    """Sums and maxima over threads: all put their part in, then all take what these are together,
    in the order of ranks."""

    def __init__(self, ranks: int) -> None:
        self._barrier = threading.Barrier(ranks)
        self._parts: list[Tensor | None] = [None] * ranks

    def of(self, rank: int) -> tuple[Reduce, Reduce]:
        """The sum and the maximum, for this rank to call."""
        return partial(self._all, rank, torch.add), partial(self._all, rank, torch.maximum)

    def _all(self, rank: int, join: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        self._parts[rank] = x
        self._barrier.wait(30)
        found = reduce(join, [part.clone() for part in self._parts if part is not None])
        self._barrier.wait(30)
        return found


def whole() -> StepBatch:
    order = np.arange(len(TOKENS), dtype=np.int32)
    pages = np.array([[1, 2, 3]], np.int32)
    return StepBatch(TOKENS, order, np.array([0, len(TOKENS)], np.int32), pages, order)


def run(model: Model, ranks: tuple[Reduce, Reduce] | None) -> npt.NDArray[np.float32]:
    sum_ranks, max_ranks = ranks or (None, None)
    executor = TorchExecutor(
        model,
        num_pages=5,
        page_size=PAGE_SIZE,
        dtype="float64",
        sum_ranks=sum_ranks,
        max_ranks=max_ranks,
    )
    return executor.step(whole())


def run_split(model: Model, ranks: int) -> list[npt.NDArray[np.float32]]:
    meeting = Meeting(ranks)
    parts = [part_of(model, rank, ranks) for rank in range(ranks)]
    with ThreadPoolExecutor(ranks) as threads:
        futures = [threads.submit(run, part, meeting.of(rank)) for rank, part in enumerate(parts)]
        return [future.result() for future in futures]


def assert_same(model: Model, ranks: int = 2) -> None:
    expected = run(model, None)
    for found in run_split(model, ranks):
        # float64 sums in another order, rounded to float32 at the end.
        assert np.abs(found - expected).max() <= 2.0**-22 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"tied": True, "bias": True}),
        ("mistral", {"sliding_window": 7}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gemma2", {"hidden_size": 96, "query_pre_attn_scalar": 40}),
        ("gemma3_text", {"hidden_size": 96, "head_dim": 32}),
        ("phi3", {}),
    ],
)
def test_two_ranks_give_the_logits_of_one_process(family: str, options: dict[str, Any]) -> None:
    assert_same(tiny_model(family, **options))


def test_four_ranks_of_four_key_value_heads() -> None:
    assert_same(tiny_model("llama", kv_heads=4), ranks=4)


@pytest.mark.parametrize(
    "options",
    [
        {"group_size": 32},
        {"kind": "zero_point", "group_size": 16},
        {"num_bits": 8, "group_size": None},
        {"kind": "minimum", "group_size": 32},
        {"kind": "zero_point", "scattered": True},
    ],
)
def test_groups_keep_their_scales(options: dict[str, Any]) -> None:
    shapes = tiny_shapes(tiny_config("llama"))
    weights: dict[str, Weight] = {
        name: quantized(*shape, seed=index, **options)
        for index, (name, shape) in enumerate(shapes.items())
        if "_proj" in name and len(shape) == 2
    }
    assert_same(tiny_model("llama", weights=weights))


def test_a_rank_has_its_part_of_every_split_weight_and_nothing_else() -> None:
    model = tiny_model("llama", bias=True)
    parts = [part_of(model, rank, 2) for rank in range(2)]
    for name, shape in model.program.weights().items():
        halves = [part.weights.shape(name) for part in parts if name in part.program.weights()]
        loaded = [
            np.asarray(part.weights.load(name)).shape
            for part in parts
            if name in part.program.weights()
        ]
        assert halves == loaded
        halved = "_proj" in name and not (name.endswith("bias") and len(halves) == 1)
        size = int(np.prod(shape)) // 2 if halved else int(np.prod(shape))
        assert all(int(np.prod(half)) == size for half in halves)
    for op in parts[1].program.ops:
        if isinstance(op, Linear) and ("o_proj" in op.weight or "down_proj" in op.weight):
            assert op.bias is None, "one rank alone adds the bias"


@pytest.mark.parametrize(
    ("options", "ranks", "words"),
    [
        ({}, 3, "4 query heads cannot be shared evenly by 3"),
        ({"kv_heads": 1}, 2, "1 key-value heads"),
        ({"intermediate": 129}, 2, "129 gated columns"),
    ],
)
def test_what_does_not_divide_is_refused(options: dict[str, Any], ranks: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        part_of(tiny_model("llama", **options), 0, ranks)


@pytest.mark.parametrize("numbers", ["int8", "e4m3"])
def test_inputs_are_rounded_by_the_largest_of_the_whole_row(numbers: Any) -> None:
    """No rank's own part has the largest number of every row."""
    shapes = tiny_shapes(tiny_config("llama"))
    weights: dict[str, Weight] = {}
    for index, (name, shape) in enumerate(shapes.items()):
        if "_proj" in name:
            plain = quantized(*shape, num_bits=8, group_size=None, seed=index)
            scheme = replace(plain.scheme, activation=ActivationScheme(numbers))
            weights[name] = replace(plain, scheme=scheme)
    assert_same(tiny_model("llama", weights=weights))


def test_groups_across_the_border_are_refused() -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    plain = quantized(64, 64, seed=1, group_size=64)
    with pytest.raises(InputError, match=r"o_proj.*groups of"):
        uneven = QuantizedTensor(
            IntScheme(4, True, PerGroup(48)), plain.codes, np.ones((64, 2), np.float16)
        )
        part_of(tiny_model("llama", weights={name: uneven}), 0, 2)
    with pytest.raises(UnsupportedModelError, match="mix experts"):
        part_of(tiny_model("mixtral"), 0, 2)
