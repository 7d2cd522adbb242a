"""The graph that writes pools in place: the same answers as the one that only reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from compile.from_onnx import OnnxWeights
from compile.onnx_contract import POSITIONS
from compile.onnx_proto import Graph, encode_graph, read_graph
from compile.to_onnx.aliased import aliased, written_name
from runtime.executors.onnx import OnnxExecutor, executor
from runtime.executors.onnx.pools import ReadingRunner, WritingRunner, writes_in_place
from tests.runtime.executors.onnx_models import (
    INT4,
    MIXED,
    model_and_artifact,
    random_tokens,
    rounding_bound,
    run_schedule,
    sequences_of,
)
from tests.runtime.executors.test_onnx import EPS, FAMILIES, executor_of, oracle


def serving(artifact: Any) -> OnnxExecutor:
    return executor_of(artifact, exact=False)


@pytest.mark.parametrize("case", FAMILIES)
def test_families_follow_the_oracle(case: str, tmp_path: Path) -> None:
    """Floats are multiplied alike whether to serve or to compare, so only rows' places differ."""
    family, options = FAMILIES[case]
    model, artifact = model_and_artifact(tmp_path, family, rms_norm_eps=EPS, **options)
    sequences, served = sequences_of(MIXED), serving(artifact)
    assert isinstance(served._runner, WritingRunner)
    expected = run_schedule(oracle(model), MIXED, sequences)
    found = run_schedule(served, MIXED, sequences)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() <= rounding_bound(model, theirs)


def test_the_pools_hold_the_same_rows(tmp_path: Path) -> None:
    model, artifact = model_and_artifact(tmp_path, "qwen3", dtype="float32")
    sequences = sequences_of(MIXED)
    writing, reading = serving(artifact), executor_of(artifact)
    assert isinstance(reading._runner, ReadingRunner)
    for one in (writing, reading):
        run_schedule(one, MIXED, sequences)
    written = 0
    for name, pool in writing._pools.items():
        gap = np.abs(pool - reading._pools[name]).max()
        assert gap <= rounding_bound(model, reading._pools[name])
        np.testing.assert_array_equal(pool.any(axis=(2, 3)), reading._pools[name].any(axis=(2, 3)))
        assert not pool[0].any(), "page 0 belongs to nobody"
        written += int(pool.any(axis=(2, 3)).sum())
    assert written > 100


def test_a_chunk_beside_single_tokens_is_written_in_two_parts(tmp_path: Path) -> None:
    model, artifact = model_and_artifact(tmp_path, "llama")
    chunk, others = 120, 6
    tokens = [random_tokens(chunk, 0), *(random_tokens(2, s) for s in range(1, others + 1))]
    plan = [[(s, 1) for s in range(1, others + 1)], [(s, 1) for s in range(others, 0, -1)]]
    plan[1].insert(2, (0, chunk))
    options: dict[str, Any] = {"num_pages": 240, "page_size": 4, "threads": 1}
    expected = run_schedule(OnnxExecutor(artifact, exact=True, **options), plan, tokens)
    found = run_schedule(OnnxExecutor(artifact, **options), plan, tokens)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() <= 2 * rounding_bound(model, theirs)


def test_where_onnx_runtime_copies_pools_are_only_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, artifact = model_and_artifact(tmp_path, "llama")
    monkeypatch.setattr(executor, "writes_in_place", lambda options: False)
    assert isinstance(serving(artifact)._runner, ReadingRunner)


@pytest.mark.parametrize("damage", ["nothing written", "another row", None])
def test_the_check_of_writing_in_place_notices(
    damage: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Binding:
        """What io_binding gives, on a pool of NumPy's."""

        def bind_ortvalue_input(self, name: str, value: Any) -> None:
            self.pool = value

        def bind_ortvalue_output(self, name: str, value: Any) -> None:
            assert value is self.pool and name == written_name("pool")

        def bind_cpu_input(self, name: str, values: Any) -> None:
            setattr(self, name, values)

    class Session:
        def __init__(self, *args: Any, **options: Any) -> None:
            pass

        def io_binding(self) -> Binding:
            return Binding()

        def run_with_iobinding(self, binding: Any) -> None:
            ((page, offset),) = binding.write_slots
            pool = binding.pool if damage != "nothing written" else binding.pool.copy()
            pool[page, offset] = binding.rows
            if damage == "another row":
                pool[0, 0] = 1

    class Values:
        ortvalue_from_numpy = staticmethod(lambda values: values)

    options = executor._options(1, exact=False)
    assert writes_in_place(options)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "OrtValue", Values)
    assert writes_in_place(options) == (damage is None)


def portable(artifact: Any) -> Graph:
    assert isinstance(artifact.weights, OnnxWeights)
    return read_graph(artifact.weights.graph_path, constants=True)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_it_is_a_valid_graph_that_appends_nothing(family: str, tmp_path: Path) -> None:
    _, artifact = model_and_artifact(tmp_path, family, scheme=INT4)
    graph = aliased(portable(artifact))
    path = tmp_path / "aliased.onnx"
    path.write_bytes(encode_graph(graph, ""))
    onnx.checker.check_model(str(path), full_check=True)
    made = {name for node in graph.nodes for name in node.outputs}
    read = {name for node in graph.nodes for name in node.inputs}
    assert made - read == {"logits"}, "nothing is computed that nobody reads"
    assert not any(node.op == "Concat" for node in graph.nodes)
    ports = {port.name: port for port in graph.inputs}
    for port in graph.outputs[1:]:
        assert port.shape == ports[port.name.removesuffix(".written")].shape
    assert POSITIONS in ports and "query_lengths" in read


def test_a_closed_executor_answers_nothing(tmp_path: Path) -> None:
    executor_ = serving(model_and_artifact(tmp_path, "llama")[1])
    executor_.close()
    assert executor_._runner is None and executor_._pools == {}
