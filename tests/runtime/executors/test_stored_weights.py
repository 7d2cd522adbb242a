"""What is packed from files as they lie is what their decoded weights would be packed to."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from compile.from_gguf import GgufWeights
from compile.open_model import open_model
from compile.to_gguf.build import build_gguf
from quant.format.checkpoint import Checkpoint, open_checkpoint
from quant.format.containers import CONTAINERS, Format
from quant.format.dequantized import dequantized
from quant.format.errors import FileFormatError
from quant.format.scheme import (
    ActivationScheme,
    IntScheme,
    PerChannel,
    PerGroup,
    PerTensor,
    scale_shape,
)
from quant.format.stored import FileBytes, HoldsFloats, HoldsIntegers
from quant.format.tensor import QuantizedTensor
from runtime.executors.cpu.weights import Weights, pack, pack_stored
from runtime.kernels.cpu._native import ThreadPool
from tests.tiny import tiny_checkpoint

POOL = ThreadPool(2)
INT8 = ActivationScheme("int8")
MODULE = "model.layers.0.mlp.down_proj"
NAME = f"{MODULE}.weight"


def ones_weight(scheme: IntScheme, rows: int, columns: int, lowest_zero: int) -> QuantizedTensor:
    """Every code, times 1: so that its numbers are its integers, less their zero points."""
    random = np.random.default_rng(0)
    shape = scale_shape(scheme, (rows, columns))
    zeros = random.integers(scheme.qmin + lowest_zero, scheme.qmax + 1, shape)
    return QuantizedTensor(
        scheme,
        random.integers(scheme.qmin, scheme.qmax + 1, (rows, columns)).astype(np.int8),
        np.ones(shape, np.float16),
        None if scheme.symmetric else zeros.astype(np.int8),
    )


def checkpoint_of(directory: Path, kind: Format, weight: QuantizedTensor) -> Checkpoint:
    directory.mkdir()
    stored = CONTAINERS[kind].encode(MODULE, weight)
    config = {"quantization_config": CONTAINERS[kind].config({MODULE: weight.scheme}, 0.01)}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(stored, directory / "model.safetensors")
    return open_checkpoint(directory)


IntGranularity = PerTensor | PerChannel | PerGroup


def integers(kind: Format, bits: int, symmetric: bool, grain: IntGranularity, **more: Any) -> Any:
    name = f"{kind}-{bits}-{'sym' if symmetric else 'asym'}-{type(grain).__name__}"
    return pytest.param(kind, IntScheme(bits, symmetric, grain, **more), id=name)


CASES = [
    *(integers("compressed-tensors", bits, True, PerGroup(32)) for bits in range(2, 9)),
    *(integers("compressed-tensors", bits, False, PerGroup(64)) for bits in (2, 3, 4, 8)),
    *(integers("compressed-tensors", bits, False, PerChannel()) for bits in (4, 8)),
    integers("compressed-tensors", 8, True, PerChannel(), activation=INT8),
    integers("compressed-tensors", 8, False, PerTensor(), activation=INT8),
    integers("compressed-tensors", 4, True, PerGroup(32), activation=INT8),
    *(integers("gptq", bits, True, PerGroup(64)) for bits in (2, 3, 4, 8)),
    *(integers("gptq", bits, False, PerGroup(32)) for bits in (2, 3, 4, 8)),
    *(integers("gptq_v2", bits, False, PerChannel()) for bits in (4, 8)),
    *(integers("awq", 4, symmetric, PerGroup(32)) for symmetric in (True, False)),
]


@pytest.mark.parametrize("quads", [True, False])
@pytest.mark.parametrize(("kind", "scheme"), CASES)
def test_integers_arrive_as_a_checkpoint_has_them(
    kind: Format, scheme: IntScheme, quads: bool, tmp_path: Path
) -> None:
    """Of all kinds of files, in rows that are no multiple of a strip."""
    weight = ones_weight(scheme, 160, 192, CONTAINERS[kind].lowest_zero)
    source = checkpoint_of(tmp_path / "m", kind, weight)
    packed = Weights(source, POOL, quads).matrix(NAME, weight.shape)
    expected = weight.codes.astype(np.float32)
    if weight.zero_point is not None:
        expected -= weight.zero_point.astype(np.float32)[:, weight.column_groups()]
    np.testing.assert_array_equal(packed.matrix.dequantize(), expected)
    assert packed.matrix.in_quads == quads
    decoded = pack(weight, POOL, packed.rounding if scheme.activation else None, quads)
    assert packed.rounding == decoded.rounding
    assert packed.matrix.nbytes == decoded.matrix.nbytes


@pytest.mark.parametrize(("kind", "scheme"), CASES)
def test_which_files_are_read_without_an_array_of_codes(
    kind: Format, scheme: IntScheme, tmp_path: Path
) -> None:
    weight = ones_weight(scheme, 64, 96 if scheme.granularity == PerGroup(32) else 192, 1)
    source = checkpoint_of(tmp_path / "m", kind, weight)
    assert isinstance(source, HoldsIntegers)
    in_bytes_of_more = scheme.num_bits < 8 and scheme.activation is not None
    assert (source.stored(NAME) is None) == (kind == "awq" or in_bytes_of_more)


@pytest.mark.parametrize("columns", [5, 40, 100])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_rows_that_end_within_a_word(bits: int, columns: int, tmp_path: Path) -> None:
    weight = ones_weight(IntScheme(bits, True, PerChannel()), 70, columns, 0)
    source = checkpoint_of(tmp_path / "m", "compressed-tensors", weight)
    found = Weights(source, POOL, True).matrix(NAME, weight.shape).matrix.dequantize()
    np.testing.assert_array_equal(found, weight.codes.astype(np.float32))


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_every_matrix_of_a_file_is_the_same_either_way(tmp_path: Path, kind: str) -> None:
    """Those of queries and keys too, whose rows a file has in another order."""
    checkpoint = tiny_checkpoint(
        tmp_path / "float", hidden_size=256, intermediate_size=256, num_attention_heads=4
    )
    build_gguf(checkpoint, tmp_path / "model.gguf", kind)
    source = open_model(tmp_path / "model.gguf").weights
    assert isinstance(source, GgufWeights) and isinstance(source, HoldsIntegers)
    compared = 0
    for name in source.names():
        stored, weight = source.stored(name), source.load(name)
        assert (stored is not None) == isinstance(weight, QuantizedTensor)
        if stored is not None:
            found, expected = pack_stored(stored, POOL, None, True), pack(weight, POOL, None, True)
            assert found.rounding == expected.rounding
            np.testing.assert_array_equal(found.matrix.dequantize(), expected.matrix.dequantize())
            compared += 1
    assert compared > 7


FLOATS: dict[str, npt.DTypeLike] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


def float_checkpoint(directory: Path, values: npt.NDArray[Any]) -> Checkpoint:
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    before = np.arange(5, dtype=np.float32)  # so that the matrix does not begin the file
    save_file({"a": before, NAME: values}, directory / "model.safetensors")
    return open_checkpoint(directory)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 1), (64, 33), (130, 257)])
def test_floats_arrive_as_they_lie(dtype: str, shape: tuple[int, int], tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal(shape).astype(FLOATS[dtype])
    source = float_checkpoint(tmp_path / "m", values)
    assert isinstance(source, HoldsFloats)
    place = source.floats(NAME)
    assert place is not None and (place.dtype, place.shape) == (dtype, shape)
    assert source.floats("a") is None, "a vector is loaded"
    packed = Weights(source, POOL, True).matrix(NAME, shape)
    np.testing.assert_array_equal(packed.matrix.dequantize(), values.astype(np.float32))


def cut_after_rows(directory: Path, data: object, rows: int) -> None:
    assert isinstance(data, FileBytes)
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[: data.begin + rows * data.row_bytes])


def test_a_file_that_became_shorter_is_an_error_that_names_the_tensor(tmp_path: Path) -> None:
    source = float_checkpoint(tmp_path / "f", np.ones((200, 64), np.float32))
    place = source.floats(NAME)
    assert place is not None
    cut_after_rows(tmp_path / "f", place.data, 150)
    with pytest.raises(FileFormatError, match=r"down_proj.weight' ends early"):
        Weights(source, POOL, True).matrix(NAME, (200, 64))
    (tmp_path / "f" / "model.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"down_proj.weight' cannot be read"):
        Weights(source, POOL, True).matrix(NAME, (200, 64))


def test_codes_that_became_fewer_are_an_error_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = ones_weight(IntScheme(4, True, PerGroup(32)), 200, 64, 0)
    source = checkpoint_of(tmp_path / "i", "compressed-tensors", weight)
    stored = source.stored(NAME)  # and with it the scales
    assert stored is not None
    monkeypatch.setattr(source, "stored", lambda name: stored)
    cut_after_rows(tmp_path / "i", stored.rows.data, 150)
    with pytest.raises(FileFormatError, match=r"down_proj.weight' ends early"):
        Weights(source, POOL, True).matrix(NAME, (200, 64))


def test_a_dequantized_view_is_nowhere_in_a_file(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "m", scheme=IntScheme(4, True, PerGroup(32)))
    view = dequantized(open_checkpoint(checkpoint), "float32")
    names = [name for name in view.names() if name.endswith("_proj.weight")]
    for name in names:
        assert view.floats(name) is None and view.stored(name) is None
        shape = view.shape(name)
        found = Weights(view, POOL, True).matrix(name, (shape[0], shape[1])).matrix.dequantize()
        np.testing.assert_array_equal(found, np.asarray(view.load(name), np.float32))
    assert names
