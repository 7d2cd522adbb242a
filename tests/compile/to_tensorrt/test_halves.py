"""The graph for TensorRT computes what the portable one does, its products in float16."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from compile.onnx_contract import GRAPH_FILE
from compile.onnx_lint import lint, read_onnx
from quant.format.scheme import IntScheme, PerChannel, PerGroup
from tests.compile.to_onnx.fp8_models import FP8_SCHEMES, fp8_model
from tests.compile.to_tensorrt.graphs import (
    HALVES,
    Graphs,
    both_graphs,
    graphs_of,
    run_in_two_steps,
)
from tests.runtime.executors.onnx_models import TABLE, table_of
from tests.tiny import tiny_model

ROUNDINGS = 12
"""Of each layer: into and out of q, k, v, attention, o, gate and up, down."""
TOKENS = [5, 17, 200, 3, 3, 90, 41, 8, 301]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "float": ("llama", {}),
    "float-tied": ("llama", {"tied": True}),
    "int4": ("llama", {"scheme": IntScheme(4, True, PerGroup(32))}),
    "int4-zero-points": ("qwen2", {"scheme": IntScheme(4, False, PerGroup(32))}),
    "int4-rows": ("mistral", {"scheme": IntScheme(4, False, PerChannel())}),
    "int8": ("qwen3", {"scheme": IntScheme(8, True, PerChannel())}),
    "int8-zero-points": ("llama", {"scheme": IntScheme(8, False, PerGroup(16)), "bias": True}),
    "window": ("mistral", {"sliding_window": 3}),
    "experts": ("mixtral", {"scheme": IntScheme(4, True, PerGroup(32))}),
    "capped": ("gemma2", {"scheme": IntScheme(4, True, PerGroup(32))}),
    "gemma3": ("gemma3_text", {}),
    "slices": ("phi3", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_its_logits_are_those_of_the_portable_graph(tmp_path: Path, case: str) -> None:
    family, options = CASES[case]
    check_logits(both_graphs(tmp_path, family, **options))


@pytest.mark.parametrize("name", FP8_SCHEMES)
def test_the_logits_of_fp8_too(tmp_path: Path, name: str) -> None:
    check_logits(graphs_of(tmp_path, fp8_model(name)))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("grain", [PerChannel(), PerGroup(16)], ids=str)
def test_tables_of_integers_are_looked_up_dequantized(
    tmp_path: Path, grain: PerChannel | PerGroup, symmetric: bool, tied: bool
) -> None:
    table = table_of(IntScheme(8, symmetric, grain))
    graphs = graphs_of(tmp_path, tiny_model(tied=tied, weights={TABLE: table}))
    check_logits(graphs)
    assert TABLE in {tensor.name for tensor in graphs.halves.tensors if tensor.dtype == "int8"}
    assert not any("looked_up" in tensor.name for tensor in graphs.halves.tensors)
    readers = [node.op for node in graphs.halves.nodes if TABLE in node.inputs]
    assert readers == ["DequantizeLinear"], "one table, whoever reads it"


def check_logits(graphs: Graphs) -> None:
    onnx.checker.check_model(str(graphs.directory / HALVES), full_check=True)
    expected = run_in_two_steps(graphs, GRAPH_FILE, TOKENS)
    found = run_in_two_steps(graphs, HALVES, TOKENS)
    assert found.dtype == np.float32
    layers = graphs.model.program.sizes.layers
    bound = (ROUNDINGS * layers + 2) * 2.0**-11 * np.abs(expected).max()
    error = np.abs(found - expected).max()
    assert 0 < error < bound


def kinds(graphs: Graphs) -> Counter[str]:
    return Counter(node.op for node in graphs.halves.nodes)


def test_the_weights_are_the_same_bytes(tmp_path: Path) -> None:
    graphs = both_graphs(tmp_path, scheme=IntScheme(4, False, PerGroup(32)))
    assert graphs.halves.tensors == graphs.portable.tensors
    assert graphs.halves.metadata == graphs.portable.metadata


def test_no_integer_has_a_zero_point_and_none_is_read_but_by_dequantize_linear(
    tmp_path: Path,
) -> None:
    graphs = both_graphs(tmp_path, scheme=IntScheme(4, False, PerGroup(32)))
    integers = {t.name for t in graphs.halves.tensors if t.dtype == "int4"}
    assert len(integers) == 2 * 14, "codes and zero points"
    for node in graphs.halves.nodes:
        if node.op == "DequantizeLinear":
            assert len(node.inputs) == 2 and node.inputs[0] in integers
        else:
            assert not integers.intersection(node.inputs), node


def test_pages_and_new_rows_are_halves_and_logits_are_not(tmp_path: Path) -> None:
    graphs = both_graphs(tmp_path)
    types = {port.name: port.dtype for port in (*graphs.halves.inputs, *graphs.halves.outputs)}
    assert types["logits"] == "float32"
    assert {types["pool_k.0"], types["pool_v.1"], types["new_k.1"]} == {"float16"}
    assert types["token_ids"] == "int64"


def test_a_tied_table_is_one_table(tmp_path: Path) -> None:
    graphs = both_graphs(tmp_path, tied=True)
    readers = [n for n in graphs.halves.nodes if "model.embed_tokens.weight" in n.inputs]
    assert [node.op for node in readers] == ["Cast"]
    assert Counter(n.op for n in graphs.halves.nodes if readers[0].outputs[0] in n.inputs) == {
        "Gather": 1,
        "Gemm": 1,
    }


def test_nothing_is_computed_that_nobody_reads(tmp_path: Path) -> None:
    graphs = both_graphs(tmp_path, scheme=IntScheme(4, True, PerGroup(32)))
    read = {name for node in graphs.halves.nodes for name in node.inputs}
    read |= {port.name for port in graphs.halves.outputs}
    assert all(read.intersection(node.outputs) for node in graphs.halves.nodes)
    assert kinds(graphs)["Attention"] == 2
    assert kinds(graphs)["Gemm"] == 15


def test_the_linter_finds_fault_with_the_portable_graph_alone(tmp_path: Path) -> None:
    graphs = both_graphs(tmp_path, "mixtral", scheme=IntScheme(4, False, PerGroup(32)))

    def faults(name: str) -> set[str]:
        found = lint(read_onnx(graphs.directory / name))
        return {finding.rule for finding in found if "tensorrt" in finding.targets}

    assert "L5" in faults(GRAPH_FILE), "zero points"
    assert faults(HALVES) == set()
