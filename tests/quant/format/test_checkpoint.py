"""open_checkpoint: what opens, and what is refused before a weight is read."""

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from quant.format import awq, gptq
from quant.format.checkpoint import Checkpoint, open_checkpoint
from quant.format.errors import FileFormatError, InputError, UnsupportedModelError
from quant.format.safetensors_writer import INDEX_NAME, ShardedWriter
from quant.format.scheme import FloatScheme
from quant.format.tensor import QuantizedTensor
from tests.quant.format.random_weights import assert_same, int_scheme, random_weight
from tests.tiny import tiny_checkpoint

Stored = dict[str, npt.NDArray[Any]]

FLOATS: Stored = {
    "a.weight": np.arange(4).reshape(2, 2).astype(ml_dtypes.bfloat16),
    "b.weight": np.ones((3, 2), np.float16),
    "norm.weight": np.ones(2, np.float32),
}


def write(
    directory: Path,
    stored: Stored | None = None,
    quantization: Any = None,
    max_shard_bytes: int = 10**6,
    **config: Any,
) -> Path:
    directory.mkdir()
    with ShardedWriter(directory, max_shard_bytes) as writer:
        for name, array in (FLOATS if stored is None else stored).items():
            writer.add(name, array)
    if quantization is not None:
        config["quantization_config"] = quantization
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    return directory


def refused(directory: Path, message: str, kind: type[InputError] = InputError) -> None:
    with pytest.raises(kind, match=message) as caught:
        open_checkpoint(directory)
    assert str(directory) in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("max_shard_bytes", [10**6, 8])
def test_floats_keep_their_dtype(tmp_path: Path, max_shard_bytes: int) -> None:
    source = open_checkpoint(write(tmp_path / "m", max_shard_bytes=max_shard_bytes))
    assert len(source.weight_files()) == (1 if max_shard_bytes > 8 else 3)
    assert set(source.names()) == set(source.raw_names()) == set(FLOATS)
    for name, array in FLOATS.items():
        loaded = source.load(name)
        assert not isinstance(loaded, QuantizedTensor)
        assert loaded.dtype == array.dtype
        np.testing.assert_array_equal(loaded, array)
        assert source.scheme(name) == FloatScheme(array.dtype.name)  # type: ignore[arg-type]
        assert source.shape(name) == array.shape
        assert source.stored_bytes(name) == array.nbytes
    assert source.quant_method is None
    assert source.config["model_type"] == "llama"


def test_a_whole_model_directory(tmp_path: Path) -> None:
    source = open_checkpoint(tiny_checkpoint(tmp_path / "m"))
    names = [path.name for path in source.files()]
    assert names == ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    assert "lm_head.weight" in source.names()


def test_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    source = open_checkpoint(write(tmp_path / "m"))
    for ask in (source.load, source.shape, source.scheme, source.load_raw, source.stored_bytes):
        with pytest.raises(FileFormatError, match="no tensor 'x'"):
            ask("x")


def gptq_checkpoint(directory: Path, **more: Any) -> tuple[Checkpoint, QuantizedTensor]:
    tensor = random_weight(int_scheme(4, True, 32), 8, 64, scale_dtype=np.float16)
    stored = FLOATS | gptq.encode_weight("m.q_proj", tensor, 1)
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True} | more
    return open_checkpoint(write(directory, stored, config)), tensor


def test_gptq(tmp_path: Path) -> None:
    source, tensor = gptq_checkpoint(tmp_path / "m")
    assert set(source.names()) == {*FLOATS, "m.q_proj.weight"}
    assert source.shape("m.q_proj.weight") == (8, 64)
    assert source.scheme("m.q_proj.weight") == tensor.scheme
    loaded = source.load("m.q_proj.weight")
    assert isinstance(loaded, QuantizedTensor)
    assert_same(loaded, tensor)
    assert source.quant_method == "gptq"


def test_awq(tmp_path: Path) -> None:
    tensor = random_weight(int_scheme(4, False, 32), 8, 64, scale_dtype=np.float16)
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}
    source = open_checkpoint(write(tmp_path / "m", awq.encode_weight("q", tensor), config))
    loaded = source.load("q.weight")
    assert isinstance(loaded, QuantizedTensor)
    assert_same(loaded, tensor)


def test_missing_parts(tmp_path: Path) -> None:
    refused(tmp_path / "none", "not a directory")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "config.json: cannot be read")
    (tmp_path / "empty" / "config.json").write_text("{}")
    refused(tmp_path / "empty", "holds no weights")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickle_is_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, f"'{name}' is a pickle.*convert the weights to safetensors")


def test_remote_code_is_refused(tmp_path: Path) -> None:
    refused(write(tmp_path / "m", auto_map={"AutoModel": "x.Y"}), "auto_map")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '"x"', "\ud800"])
def test_config_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    write(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(tmp_path / "m", "config.json: is not", FileFormatError)


@pytest.mark.parametrize("method", ["bitsandbytes", None, 4])
def test_unknown_quantization_is_named(tmp_path: Path, method: Any) -> None:
    directory = write(tmp_path / "m", quantization={"quant_method": method})
    refused(directory, f"{method!r} is not supported", UnsupportedModelError)


def test_quantization_config_that_is_no_object(tmp_path: Path) -> None:
    refused(write(tmp_path / "m", quantization=[1]), "quantization_config", FileFormatError)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("a.qzeros", np.zeros((1, 1), np.int32), "'a.qzeros' belongs to no"),
        ("a.weight_scale", np.ones((2, 1), np.float32), "'a.weight_scale' belongs to no"),
        ("a.input_scale", np.ones(1, np.float32), "'a.input_scale' belongs to no"),
        ("layers.0.self_attn.k_scale", np.ones(1, np.float32), "k_scale' belongs to no"),
        ("c.weight", np.zeros((2, 2), np.int8), "'c.weight' has dtype int8"),
        ("c.weight", np.zeros((2, 2), ml_dtypes.float8_e4m3fn), "dtype float8_e4m3fn"),
        ("ids", np.zeros(2, np.int64), "'ids' has dtype int64"),
    ],
)
def test_left_over_tensors_are_named(
    tmp_path: Path, name: str, array: npt.NDArray[Any], message: str
) -> None:
    refused(write(tmp_path / "m", FLOATS | {name: array}), message)


def test_a_weight_both_packed_and_in_full(tmp_path: Path) -> None:
    tensor = random_weight(int_scheme(4, True, 32), 8, 64, scale_dtype=np.float16)
    stored = gptq.encode_weight("q", tensor, 1) | {"q.weight": np.zeros((8, 64), np.float16)}
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    refused(write(tmp_path / "m", stored, config), "'q.weight' is stored both")


def sharded(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    directory = write(tmp_path / "m", max_shard_bytes=8)
    return directory, json.loads((directory / INDEX_NAME).read_text())


def test_index_may_not_lead_out(tmp_path: Path) -> None:
    directory, index = sharded(tmp_path)
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((directory / index["weight_map"]["a.weight"]).read_bytes())
    names = [
        "../outside.safetensors",
        str(outside),
        "sub/../../outside.safetensors",
        ".",
        "..",
        "",
        "a\0.safetensors",
        "pytorch_model.bin",
    ]
    for name in names:
        index["weight_map"]["a.weight"] = name
        (directory / INDEX_NAME).write_text(json.dumps(index))
        refused(directory, "not the plain name", FileFormatError)


def test_a_shard_may_not_be_a_link_out(tmp_path: Path) -> None:
    directory, index = sharded(tmp_path)
    shard = directory / index["weight_map"]["a.weight"]
    shard.rename(tmp_path / "outside.safetensors")
    shard.symlink_to(tmp_path / "outside.safetensors")
    refused(directory, "no file inside", FileFormatError)


def test_tokenizer_may_not_be_a_link_out(tmp_path: Path) -> None:
    directory = write(tmp_path / "m")
    (tmp_path / "secret").write_text("x")
    (directory / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(FileFormatError, match=r"tokenizer\.json: is no file inside"):
        open_checkpoint(directory).files()


@pytest.mark.parametrize("name", ["config.json", INDEX_NAME, "model.safetensors"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    directory = write(tmp_path / "m")
    (directory / name).unlink(missing_ok=True)
    os.mkfifo(directory / name)
    refused(directory, "no file inside", FileFormatError)


def test_the_hugging_face_cache_is_all_links_to_its_blobs(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--x" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "models--x" / "blobs").mkdir()
    write(snapshot)
    for i, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(tmp_path / "models--x" / "blobs" / str(i))
        path.symlink_to(f"../../blobs/{i}")
    assert set(open_checkpoint(snapshot).names()) == set(FLOATS)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    directory, index = sharded(tmp_path)
    path, weight_map = directory / INDEX_NAME, index["weight_map"]
    bad: list[tuple[Any, str]] = [
        ({**weight_map, "x": weight_map["a.weight"]}, "'x' is not in"),
        ({**weight_map, "a.weight": weight_map["b.weight"]}, "'a.weight' is not in"),
        ({**weight_map, "a.weight": "absent.safetensors"}, "absent.safetensors: is missing"),
        ({**weight_map, "a.weight": 1}, "weight_map"),
        ([], "weight_map"),
    ]
    for broken, message in bad:
        path.write_text(json.dumps({"weight_map": broken}))
        refused(directory, message)


def test_a_shard_with_an_unlisted_tensor(tmp_path: Path) -> None:
    directory = write(tmp_path / "m")
    (directory / "model.safetensors").rename(directory / "all.safetensors")
    weight_map = dict.fromkeys(list(FLOATS)[:2], "all.safetensors")
    (directory / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    refused(directory, "does not list tensor 'norm.weight'", FileFormatError)


def test_a_stale_index_beside_a_single_file(tmp_path: Path) -> None:
    directory, _ = sharded(tmp_path)
    other = write(tmp_path / "other")
    (other / "model.safetensors").rename(directory / "model.safetensors")
    refused(directory, "does not list 'model.safetensors'", FileFormatError)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    directory, index = sharded(tmp_path)
    shard = directory / index["weight_map"]["b.weight"]
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(directory, rf"{shard.name}: tensor 'b.weight'", FileFormatError)
