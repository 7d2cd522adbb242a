"""The built files, read by the onnx package itself, against the checkpoint."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import pytest

from compile.compare import compare_weights
from compile.from_onnx import OnnxWeights
from compile.model import Model
from compile.open_model import open_model
from compile.same_program import program_differences
from compile.to_onnx.build import build_model, build_onnx
from compile.to_onnx.plan import plan_model, plan_onnx
from quant.format.errors import FileFormatError, InputError, UnsupportedModelError
from quant.format.scheme import CodebookScheme, IntScheme, PerChannel, PerGroup
from quant.format.tensor import QuantizedTensor, Weight
from tests.runtime.executors.onnx_models import SCHEMES, TABLE, VERSION, scattered_model, table_of
from tests.tiny import tiny_checkpoint, tiny_model

FILES = ["config.json", "model.onnx", "model.onnx.data"]
LINEAR = "model.layers.1.mlp.down_proj.weight"


def loaded(directory: Path) -> dict[str, npt.NDArray[Any]]:
    """Every initializer as the onnx package reads it."""
    model = onnx.load(str(directory / "model.onnx"))
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe"])
def test_the_checker_of_onnx_finds_nothing(family: str, tmp_path: Path) -> None:
    build_model(tiny_model(family), tmp_path, version=VERSION)
    path = str(tmp_path / "model.onnx")
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert model.ir_version == 10
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 24)]
    assert {node.domain for node in model.graph.node} == {""}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_integers_and_scales_are_those_of_the_checkpoint(scheme: str, tmp_path: Path) -> None:
    """Read by onnx, which knows nothing of us: [in, out], so that they are turned."""
    model = tiny_model("llama", scheme=SCHEMES[scheme])
    build_model(model, tmp_path, version=VERSION)
    stored, again = loaded(tmp_path), open_model(tmp_path).weights
    quantized = 0
    for name in model.program.weights():
        weight = model.weights.load(name)
        if not isinstance(weight, QuantizedTensor):
            continue
        quantized += 1
        scale = weight.scale.astype(np.float32)
        groups = np.atleast_2d(stored[f"{name}.scale"])
        np.testing.assert_array_equal(stored[name].astype(np.int8), weight.codes.T)
        np.testing.assert_array_equal(groups.T, scale)
        read = again.load(name)
        assert isinstance(read, QuantizedTensor) and read.digest() == weight.digest()
        if weight.zero_point is not None:
            zeros = np.atleast_2d(stored[f"{name}.zero_point"]).astype(np.int8)
            np.testing.assert_array_equal(zeros.T, weight.zero_point)
    assert quantized == 14


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("type_name", ["auto", "fp32"])
def test_floats_keep_every_bit(dtype: str, type_name: str, tmp_path: Path) -> None:
    model = tiny_model("qwen2", dtype=dtype, tied=True)
    built = build_model(model, tmp_path, type_name, version=VERSION)
    again = open_model(tmp_path)
    expected = "float32" if type_name == "fp32" else dtype
    assert {row.form.dtype for row in built.rows} == {expected}
    assert program_differences(model.program, again.program) == []
    for name in model.program.weights():
        state = compare_weights(name, model.weights.load(name), again.weights.load(name))
        assert (state.state, state.stored) == ("equal", expected), name


def test_quantized_weights_as_floats_are_worth_the_same(tmp_path: Path) -> None:
    model = tiny_model("llama", scheme=SCHEMES["int4-asymmetric"])
    build_model(model, tmp_path, "fp32", version=VERSION)
    again = open_model(tmp_path)
    states = {
        compare_weights(name, model.weights.load(name), again.weights.load(name)).state
        for name in model.program.weights()
    }
    assert states == {"equal"}


@pytest.mark.parametrize("scheme", [None, SCHEMES["int8"]])
def test_matrices_become_the_nearest_float16(scheme: Any, tmp_path: Path) -> None:
    model = tiny_model("qwen2", scheme=scheme, dtype="float32")
    build_model(model, tmp_path, "fp16", version=VERSION)
    stored = loaded(tmp_path)
    for name, shape in model.program.weights().items():
        weight = model.weights.load(name)
        values = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        dtype = np.float16 if len(shape) == 2 else np.float32
        np.testing.assert_array_equal(stored[name], values.astype(dtype), strict=True)


def test_numbers_beyond_float16_are_refused(tmp_path: Path) -> None:
    model = tiny_model(weights={LINEAR: np.full((64, 128), 1e5, np.float32)})
    with pytest.raises(UnsupportedModelError, match=f"{LINEAR} has numbers that float16 does not"):
        build_model(model, tmp_path, "fp16", version=VERSION)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tied", [False, True])
def test_a_token_table_keeps_its_integers(tied: bool, tmp_path: Path) -> None:
    model = tiny_model(tied=tied, weights={TABLE: table_of(IntScheme(4, False, PerGroup(32)))})
    built = build_model(model, tmp_path, version=VERSION)
    (row,) = [row for row in built.rows if row.tensor == TABLE]
    assert row.form.dtype == "int8"
    table, again = model.weights.load(TABLE), open_model(tmp_path).weights.load(TABLE)
    assert isinstance(table, QuantizedTensor) and isinstance(again, QuantizedTensor)
    assert again.digest() == table.digest()


def test_a_build_gives_the_same_bytes_and_the_planned_size(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", "qwen3", scheme=SCHEMES["int4"])
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        build_onnx(checkpoint, folder, "int4", version=VERSION)
    assert sorted(path.name for path in folders[0].iterdir()) == FILES
    for name in FILES:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    plan = plan_onnx(checkpoint, "int4", VERSION)
    sizes = [(folders[0] / name).stat().st_size for name in FILES[1:]]
    assert (len(plan.graph_bytes), plan.data_bytes) == tuple(sizes)
    assert plan.file_bytes == sum(sizes)


def test_the_config_no_longer_speaks_of_the_checkpoints_files(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", scheme=SCHEMES["int4"])
    build_onnx(checkpoint, tmp_path / "onnx", version=VERSION)
    source = json.loads((checkpoint / "config.json").read_text("utf-8"))
    assert source.pop("quantization_config")
    assert json.loads((tmp_path / "onnx" / "config.json").read_text("utf-8")) == source


def test_only_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    import weakref

    model = tiny_model("llama")
    alive: list[weakref.ref[Any]] = []
    most = 0

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(model.weights, name)

        def load(self, name: str) -> Weight:
            nonlocal most
            loaded = np.array(model.weights.load(name))
            alive.append(weakref.ref(loaded))
            most = max(most, sum(reference() is not None for reference in alive))
            return loaded

    weights: Any = Counting()
    build_model(replace(model, weights=weights), tmp_path, version=VERSION)
    assert len(alive) == len(model.program.weights())
    # The one before is let go of when the next is there.
    assert most <= 2


def with_weight(scheme: Any, name: str = LINEAR, **parts: Any) -> Model:
    """A tiny llama of 80 columns in its down projections, one weight of which is in `scheme`."""
    rows, columns = tiny_model(intermediate=80).weights.shape(name)
    codes = np.random.default_rng(0).integers(0, 7, (rows, columns), dtype=np.int8)
    scale = np.ones((rows, scheme.groups(columns)), np.float32)
    weight = QuantizedTensor(scheme, codes, scale, **parts)
    return tiny_model(intermediate=80, weights={name: weight})


REFUSED: dict[str, tuple[Any, str, str]] = {
    "small groups": (IntScheme(4, True, PerGroup(8)), LINEAR, "multiplies groups of 16, 32"),
    "no power of two": (IntScheme(4, True, PerGroup(20)), LINEAR, "multiplies groups of 16, 32"),
    "short last group": (IntScheme(4, True, PerGroup(32)), LINEAR, "32 does not divide its 80"),
    "codebook": (CodebookScheme("e4m3", PerChannel()), LINEAR, "integers of up to 8 bits"),
    "token table": (
        CodebookScheme("e4m3", PerChannel()),
        "model.embed_tokens.weight",
        "integers of up to 8 bits",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_written(case: str, tmp_path: Path) -> None:
    scheme, name, problem = REFUSED[case]
    model = with_weight(scheme, name)
    with pytest.raises(UnsupportedModelError, match=problem) as refusal:
        build_model(model, tmp_path / "out", version=VERSION)
    assert name in str(refusal.value) and "--target onnx:fp32" in str(refusal.value)
    assert list(tmp_path.iterdir()) == []
    build_model(model, tmp_path / "out", "fp32", version=VERSION)


@pytest.mark.parametrize("kind", ["symmetric", "zero_point"])
def test_scattered_columns_come_back_in_their_places(kind: str, tmp_path: Path) -> None:
    model = scattered_model(kind=kind)
    build_model(model, tmp_path, version=VERSION)
    again = open_model(tmp_path).weights
    for name in model.program.weights():
        weight, read = model.weights.load(name), again.load(name)
        assert compare_weights(name, weight, read).state == "equal"
        if isinstance(weight, QuantizedTensor):
            assert isinstance(read, QuantizedTensor) and read.digest() == weight.digest()
            np.testing.assert_array_equal(read.column_groups(), weight.column_groups())
            assert read.group_index is not None
    assert list(loaded(tmp_path)).count(f"{LINEAR}.order") == 1


def test_a_table_of_columns_that_is_none_is_refused(tmp_path: Path) -> None:
    build_model(scattered_model(), tmp_path, version=VERSION)
    weights = open_model(tmp_path).weights
    assert isinstance(weights, OnnxWeights)
    place = next(t.offset for t in weights.graph.tensors if t.name == f"{LINEAR}.order")
    with (tmp_path / "model.onnx.data").open("r+b") as data:
        data.seek(place)
        data.write(b"\1" * 8)
    with pytest.raises(FileFormatError, match=f"the order of tensor {LINEAR} is none"):
        weights.load(LINEAR)


def test_scattered_columns_without_a_word_leave_nothing_behind(tmp_path: Path) -> None:
    """Known only when the weight is read."""
    index = (np.arange(80, dtype=np.int32) % 5).astype(np.int32)
    model = with_weight(IntScheme(4, True, PerGroup(16)), group_index=index)
    with pytest.raises(UnsupportedModelError, match=rf"{LINEAR} has groups of scattered columns"):
        build_model(model, tmp_path, version=VERSION)
    assert list(tmp_path.iterdir()) == []


def test_bad_usage_is_refused_in_words() -> None:
    floats = tiny_model()
    for model, type_name, problem in [
        (floats, "int5", "known types: auto, fp32, fp16, fp8, int4, int8"),
        (replace(floats, kind="gguf"), "auto", "holds the .gguf file and a tokenizer.json"),
        (replace(floats, kind="onnx"), "auto", "is an ONNX artifact already; give its checkpoint"),
    ]:
        with pytest.raises(InputError, match=problem):
            plan_model(model, type_name, VERSION)


def test_rounded_inputs_are_told() -> None:
    from quant.format.scheme import ActivationScheme

    scheme = IntScheme(8, True, PerChannel(), ActivationScheme("int8"))
    model = with_weight(scheme)
    (note,) = plan_model(model, "auto", VERSION).notes
    assert "rounds the inputs of 1 linears (int8-dynamic-token); the ONNX graph does not" in note
    assert plan_model(model, "auto", VERSION, round_inputs=True).notes == ()


def test_bfloat16_is_no_surprise_to_the_reader(tmp_path: Path) -> None:
    build_model(tiny_model(), tmp_path, version=VERSION)
    assert loaded(tmp_path)["model.norm.weight"].dtype == ml_dtypes.bfloat16
