"""Mixtures of experts on the native executor: every kind of weight, and any company."""

from typing import Any

import numpy as np
import pytest

from compile.model import Model
from runtime.executors.cpu import CpuExecutor
from runtime.executors.torch import TorchExecutor
from tests.runtime.executors.onnx_models import (
    MIXED,
    NUM_PAGES,
    PAGE_SIZE,
    rounding_bound,
    run_schedule,
    sequences_of,
)
from tests.runtime.kernels.weights import quantized
from tests.tiny import tiny_model

POOL: dict[str, Any] = {"num_pages": NUM_PAGES, "page_size": PAGE_SIZE}
KINDS: dict[str, dict[str, Any]] = {
    "int4": {"num_bits": 4, "kind": "zero_point", "group_size": 32},
    "int8-scattered": {"num_bits": 8, "kind": "symmetric", "group_size": 32, "scattered": True},
}


def model_of(**kind: Any) -> Model:
    """qwen3_moe with every expert in integers."""
    shapes = tiny_model("qwen3_moe").program.weights()
    weights = {
        name: quantized(*shape, seed=index, **kind)
        for index, (name, shape) in enumerate(shapes.items())
        if ".experts." in name
    }
    return tiny_model("qwen3_moe", weights=weights)


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_experts_follow_the_oracle(kind: str) -> None:
    model, sequences = model_of(**KINDS[kind]), sequences_of(MIXED)
    expected = run_schedule(TorchExecutor(model, dtype="float64", **POOL), MIXED, sequences)
    found = run_schedule(CpuExecutor(model, threads=2, **POOL), MIXED, sequences)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() <= rounding_bound(model, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_company_changes_no_bit(kind: str, activations: Any) -> None:
    """Which rows lie beside each other at an expert depends on the step; their results do not."""
    model, sequences = model_of(**KINDS[kind]), sequences_of(MIXED)
    executor = CpuExecutor(model, threads=2, activations=activations, **POOL)
    together = run_schedule(executor, MIXED, sequences)
    for tokens, rows in zip(sequences, together, strict=True):
        alone = CpuExecutor(model, threads=1, activations=activations, **POOL)
        (expected,) = run_schedule(alone, [[(0, len(tokens))]], [tokens])
        np.testing.assert_array_equal(rows, expected)
