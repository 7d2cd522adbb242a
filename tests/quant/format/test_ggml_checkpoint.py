"""Checkpoints of ggml's blocks: read back as they were written, refused where they are damaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from quant.format.checkpoint import open_checkpoint
from quant.format.errors import FileFormatError
from quant.format.ggml_checkpoint import (
    encode_weight,
    quantization_config,
    why_not,
)
from quant.format.ggml_search import round_blocks
from quant.format.gguf_blocks import SCHEMES
from quant.format.gguf_types import Q4_K, TYPE_BY_NAME, GgmlType
from quant.format.layout import stored_bytes
from quant.format.scheme import FloatScheme, IntScheme, PerGroup, Scheme
from quant.format.tensor import QuantizedTensor

KINDS = [kind for kind, scheme in SCHEMES.items() if scheme.ggml_type]
MODULE = "model.layers.0.mlp.up_proj"


def weights() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((6, 512)).astype(np.float32)


def write(folder: Path, config: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_blocks_come_back_as_they_were(kind: GgmlType, tmp_path: Path) -> None:
    tensor = round_blocks(MODULE, kind, weights())
    stored = encode_weight(MODULE, tensor)
    schemes: dict[str, Scheme] = {MODULE: SCHEMES[kind], "lm_head": FloatScheme("float32")}
    config = quantization_config(schemes)
    assert config["types"] == {MODULE: kind.name}
    head = {"lm_head.weight": np.ones((2, 4), np.float32)}
    checkpoint = open_checkpoint(write(tmp_path / "c", config, stored | head))
    name = f"{MODULE}.weight"
    assert set(checkpoint.names()) == {name, "lm_head.weight"}
    assert checkpoint.shape(name) == (6, 512) and checkpoint.scheme(name) == SCHEMES[kind]
    assert checkpoint.stored_bytes(name) == stored_bytes("ggml", SCHEMES[kind], (6, 512), "float16")
    loaded = checkpoint.load(name)
    assert isinstance(loaded, QuantizedTensor)
    assert np.array_equal(loaded.codes, tensor.codes)
    assert np.array_equal(loaded.dequantize(), tensor.dequantize())
    assert all(np.array_equal(encode_weight(MODULE, loaded)[n], a) for n, a in stored.items())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"types": None}, "no object 'types'"),
        ({"types": {MODULE: "Q4_Z"}}, "unknown type 'Q4_Z'"),
        ({"types": {MODULE: "IQ2_XS"}}, "unknown type 'IQ2_XS'"),
        ({"types": {MODULE: 4}}, "unknown type 4"),
        ({"types": {MODULE: "Q6_K"}}, "not rows of whole Q6_K blocks of 210 bytes"),
        ({"types": {MODULE: "Q4_K", "other": "Q4_K"}}, "'other.weight_blocks' is missing"),
        ({"types": {}}, "belongs to no quantized weight"),
        ({"mix": "Q4_K_XXL"}, "unknown mix 'Q4_K_XXL'"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    stored = encode_weight(MODULE, round_blocks(MODULE, Q4_K, weights()))
    folder = write(tmp_path / "c", quantization_config({MODULE: SCHEMES[Q4_K]}) | change, stored)
    with pytest.raises(FileFormatError, match=problem):
        open_checkpoint(folder)


@pytest.mark.parametrize("bad", [np.zeros((6, 288), np.int8), np.zeros(288, np.uint8)])
def test_bytes_of_another_form_are_refused(bad: npt.NDArray[Any], tmp_path: Path) -> None:
    config = quantization_config({MODULE: SCHEMES[Q4_K]})
    folder = write(tmp_path / "c", config, {f"{MODULE}.weight_blocks": bad})
    with pytest.raises(FileFormatError, match="weight_blocks"):
        open_checkpoint(folder)


def test_only_blocks_can_be_held() -> None:
    problem = why_not(IntScheme(4, True, PerGroup(32)), (8, 64))
    assert problem is not None and "scheme.type=ggml" in problem
    for kind in KINDS:
        assert why_not(SCHEMES[kind], (8, 256)) is None
        for shape in ((8, 256), (900, 256)):
            size = stored_bytes("ggml", SCHEMES[kind], shape, "float16")
            assert size == TYPE_BY_NAME[kind.name].nbytes(shape)
