"""Graphs that round inputs as the checkpoint does, against the oracle that does too."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from compile.compare import compare_weights
from compile.from_onnx import OnnxWeights
from compile.model import Model
from compile.onnx_contract import INPUTS
from compile.open_model import open_model
from compile.program import Linear, Logits
from compile.same_program import program_differences
from compile.to_onnx.build import build_model
from compile.to_onnx.plan import plan_model
from quant.format.errors import FileFormatError
from quant.format.scheme import ActivationScheme, PerGroup, QuantizedScheme
from quant.format.tensor import QuantizedTensor
from runtime.executors.onnx import OnnxExecutor
from tests.runtime.executors.onnx_models import VERSION
from tests.runtime.executors.test_rounded_models import (
    CASES,
    TOKEN8,
    TOKENS,
    UNIT,
    alone,
    oracle,
    steps_of_inputs,
    whole_model,
)

CARRIED = {name: CASES[name] for name in ("w8a8-dynamic", "w8a8-static", "w4a8", "w4a8-scattered")}
GROUPS = ActivationScheme("int8", PerGroup(32))
CARRIED["w8a8-groups"] = {"num_bits": 8, "group_size": None, "activation": GROUPS}
CARRIED["w8-groups-a8"] = {"num_bits": 8, "group_size": 32, "activation": TOKEN8}
INTEGER_PRODUCTS = ("w8a8-dynamic", "w8a8-static")


def source_model(case: str, **options: Any) -> Model:
    model = whole_model(CARRIED[case], **options)
    said = {"quant_method": "gptq", "desc_act": CARRIED[case].get("scattered", False)}
    return replace(model, config={**model.config, "quantization_config": said})


def built(case: str, directory: Path, **options: Any) -> tuple[Model, Model]:
    model = source_model(case, **options)
    build_model(model, directory, version=VERSION, round_inputs=True)
    return model, open_model(directory)


def executor_of(model: Model, exact: bool = True) -> OnnxExecutor:
    return OnnxExecutor(model, num_pages=50, page_size=8, threads=1, exact=exact)


@pytest.mark.parametrize("case", CARRIED)
def test_whole_models_follow_the_oracle(case: str, tmp_path: Path) -> None:
    """Sums differ in their last bits, and may move an input by a whole step: in a model of one
    layer, whose tokens see only themselves, rarely, and by no more than the layer passes on."""
    model, artifact = built(case, tmp_path, layers=1)
    expected = oracle(model).step(alone(TOKENS))
    found = executor_of(artifact).step(alone(TOKENS))
    roundings = sum(op.in_features for op in model.program.ops if isinstance(op, Linear | Logits))
    difference = np.abs(found - expected).max(1)
    assert np.median(difference) <= roundings * UNIT * np.abs(expected).max()
    assert difference.max() <= steps_of_inputs(CARRIED[case])


@pytest.mark.parametrize("case", INTEGER_PRODUCTS)
def test_products_of_integers_are_the_same_at_every_accuracy(case: str, tmp_path: Path) -> None:
    _, artifact = built(case, tmp_path)
    exact = executor_of(artifact).step(alone(TOKENS)).copy()
    fast = executor_of(artifact, exact=False).step(alone(TOKENS))
    np.testing.assert_array_equal(fast, exact)


@pytest.mark.parametrize("case", CARRIED)
def test_the_artifact_says_what_it_rounds(case: str, tmp_path: Path) -> None:
    model, artifact = built(case, tmp_path)
    assert program_differences(model.program, artifact.program) == []
    assert artifact.program.rounded_inputs() == model.program.rounded_inputs() != ""
    for name in model.program.weights():
        ours, theirs = model.weights.load(name), artifact.weights.load(name)
        assert compare_weights(name, ours, theirs).state == "equal"
        if isinstance(ours, QuantizedTensor) and isinstance(theirs, QuantizedTensor):
            stored = None if ours.input_scale is None else np.float32(ours.input_scale)
            assert theirs.input_scale == stored
    assert plan_model(model, "auto", VERSION, round_inputs=True).notes == ()


@pytest.mark.parametrize("case", CARRIED)
def test_integers_are_multiplied_as_such_and_roundings_shared(case: str, tmp_path: Path) -> None:
    """Four linears of a layer read two values; the other three have one of their own."""
    built(case, tmp_path)
    graph = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False).graph
    count = Counter(node.op_type for node in graph.node)
    linears, values = 14, 8
    static = CARRIED[case]["activation"] is not TOKEN8 and case == "w8a8-static"
    assert count["MatMulInteger"] == (linears if case in INTEGER_PRODUCTS else 0)
    rounded = count["QuantizeLinear"] if case in INTEGER_PRODUCTS else count["Round"]
    assert rounded == (linears if static else values)


def test_onnx_runtime_prepares_every_weight(tmp_path: Path) -> None:
    """A product of int8 and int8 has no fast routine: what is multiplied is uint8 and int8."""
    built("w8a8-dynamic", tmp_path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options)
    optimized = onnx.load(options.optimized_model_filepath, load_external_data=False)
    found = Counter(node.op_type for node in optimized.graph.node)
    assert found["MatMulInteger"] == 14 and found["DequantizeLinear"] == 0


def test_rows_of_zeros_and_of_large_numbers_stay_alone(tmp_path: Path) -> None:
    """A row's scale is its own; that of a row of zeros is no division by zero."""
    model = source_model("w8a8-dynamic", layers=1, dtype="float32")
    table = model.weights.load("model.embed_tokens.weight")
    assert isinstance(table, np.ndarray)
    table[5], table[6] = 0, table[6] * np.float32(1e4)
    build_model(model, tmp_path, version=VERSION, round_inputs=True)
    tokens = np.array([5, 6, 7, 8], np.int32)
    executor = executor_of(open_model(tmp_path))
    together = executor.step(alone(tokens)).copy()
    assert np.isfinite(together).all()
    for index, token in enumerate(tokens):
        lone = executor.step(alone(np.array([token], np.int32)))
        np.testing.assert_allclose(together[index], lone[0], atol=1e-4)


@pytest.mark.parametrize(
    "said",
    [
        "no JSON",
        "[]",
        '{"int8-dynamic-token": 3}',
        '{"int8-dynamic-tensor": ["model.layers.0.mlp.up_proj.weight"]}',
        '{"int8-dynamic-gx": ["model.layers.0.mlp.up_proj.weight"]}',
        '{"int8-static-tensor": ["model.layers.0.mlp.up_proj.weight"]}',
        '{"int8-dynamic-token": ["nothing.weight"]}',
        '{"int8-dynamic-token": ["model.norm.weight"]}',
        '{"int8-dynamic-token": [["a"]]}',
        "[" * 100_000,
    ],
)
def test_odd_words_about_inputs_are_refused(said: str, tmp_path: Path) -> None:
    built("w8a8-dynamic", tmp_path, layers=1)
    path = tmp_path / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    next(entry for entry in model.metadata_props if entry.key == INPUTS).value = said
    path.write_bytes(model.SerializeToString())
    with pytest.raises(FileFormatError, match=r"coldpress\.inputs cannot be read|rounded oddly"):
        open_model(tmp_path)


def test_what_the_graph_cannot_round_is_told(tmp_path: Path) -> None:
    """Weights rounded anew, or kept as floats, are multiplied by inputs as they are."""
    model = source_model("w8a8-dynamic")
    for type_name in ("int4", "fp16"):
        notes = plan_model(model, type_name, VERSION, round_inputs=True).notes
        assert any("the ONNX graph does not, and multiplies by inputs" in note for note in notes)
    build_model(model, tmp_path, "int4", version=VERSION, round_inputs=True)
    artifact = open_model(tmp_path)
    assert isinstance(artifact.weights, OnnxWeights)
    assert artifact.program.rounded_inputs() == "" and INPUTS not in artifact.weights.graph.metadata
    schemes = [op.scheme for op in artifact.program.projections()]
    assert all(s.activation is None for s in schemes if isinstance(s, QuantizedScheme))
