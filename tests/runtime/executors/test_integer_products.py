"""Models that round no input, run with inputs rounded to int8."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compile.model import Model
from compile.program import Embed, Logits, SelectRows
from quant.format.tensor import QuantizedTensor
from runtime.executors.cpu import CpuExecutor
from runtime.executors.cpu.weights import RUN, RUNS_OF_INT8
from tests.runtime.executors.test_cpu_executor import TOKENS, Session, quantized_weights, whole
from tests.runtime.executors.test_rounded_models import after_embedding, alone
from tests.runtime.kernels.harness import gamma
from tests.runtime.kernels.test_native_integer import rounded
from tests.runtime.kernels.weights import KINDS, quantized
from tests.tiny import tiny_model

SCHEMES: dict[str, dict[str, Any]] = {
    "int4-symmetric-32": {},
    "int4-zero_point-64": {"kind": "zero_point", "group_size": 64},
    "int5-minimum-16": {"num_bits": 5, "kind": "minimum", "group_size": 16},
    "int8-channel": {"num_bits": 8, "group_size": None},
    "int4-scattered": {"kind": "zero_point", "scattered": True},
}


def executor_of(model: Model, **options: Any) -> CpuExecutor:
    return CpuExecutor(model, num_pages=50, page_size=8, activations="int8", **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_multiplies_runs_of_int8(kind: str) -> None:
    weight = quantized(130, 96, kind=kind)
    ops = (
        SelectRows("selected", "x"),
        Logits("logits", "selected", "weight", 96, 130, weight.scheme),
    )
    model = after_embedding(ops, {"weight": weight}, 130, 96)
    table = model.weights.load("table")
    assert isinstance(table, np.ndarray)
    x, exact = table[TOKENS].astype(np.float32), weight.dequantize().astype(np.float64)
    values = rounded(x, RUNS_OF_INT8)
    found = executor_of(model).step(alone(TOKENS))
    scale = np.abs(weight.scale.astype(np.float64)).max()
    size = np.abs(values).sum(1, keepdims=True) * scale * 256
    assert (np.abs(found - values @ exact.T) <= gamma(2 * 96 // RUN + 6) * size).all()
    assert np.abs(found - x @ exact.T).max() > 1e-3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_whole_models_are_off_by_what_the_rounding_takes(scheme: str) -> None:
    """Rounding moves an input by half a step at most, a step being 1/127 of the largest of 32: in
    the mean, 0.3 % of what such numbers are. A few linears, one behind another, add up to several
    such parts in the logits; a wrong product would move them by their own size."""
    model = tiny_model("llama", weights=quantized_weights(**SCHEMES[scheme]))
    exact = CpuExecutor(model, num_pages=50, page_size=8).step(whole(TOKENS))
    found = executor_of(model).step(whole(TOKENS))
    error = np.sqrt(np.mean((found - exact) ** 2)) / exact.std()
    assert 1e-4 < error < 0.03


@pytest.mark.parametrize("scheme", SCHEMES)
def test_company_chunks_pages_and_threads_change_no_bit(scheme: str) -> None:
    model = tiny_model("llama", weights=quantized_weights(**SCHEMES[scheme]))
    session = Session(executor_of(model, threads=1), [TOKENS], seed=0)
    session.step((0, len(TOKENS)))
    expected = session.result(0)
    busy = Session(executor_of(model, threads=2, max_step_tokens=8), [TOKENS, TOKENS], seed=1)
    for parts in [[(0, 7)], [(1, 13), (0, 1)], [(0, 1), (1, 1)], [(0, 36), (1, 31)]]:
        busy.step(*parts)
    for sequence in range(2):
        np.testing.assert_array_equal(busy.result(sequence), expected)


def test_a_tied_table_is_looked_up_as_it_is() -> None:
    model = tiny_model("llama", tied=True, weights=quantized_weights(tied=True, num_bits=8))
    embed = model.program.ops[0]
    assert isinstance(embed, Embed)
    table = model.weights.load(embed.weight)
    assert isinstance(table, QuantizedTensor)
    ops = (
        replace(embed, out="x"),
        SelectRows("selected", "x"),
        Logits("logits", "selected", embed.weight, 64, 384, table.scheme),
    )
    alike = replace(model, program=replace(model.program, ops=ops))
    values = rounded(table.dequantize()[TOKENS], RUNS_OF_INT8)
    expected = values @ table.dequantize().astype(np.float64).T
    np.testing.assert_allclose(executor_of(alike).step(alone(TOKENS)), expected, atol=1e-4)


def test_weights_whose_groups_do_not_fit_are_multiplied_as_before() -> None:
    model = tiny_model("llama", weights=quantized_weights(num_bits=3, group_size=24))
    exact = CpuExecutor(model, num_pages=50, page_size=8).step(whole(TOKENS))
    np.testing.assert_array_equal(executor_of(model).step(whole(TOKENS)), exact)
