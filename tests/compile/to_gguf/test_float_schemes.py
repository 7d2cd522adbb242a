"""Weights of small floats and of one scale for all: what a GGUF reader gets is what ours are."""

from pathlib import Path

import numpy as np
import pytest

from compile.compare import compare_weights
from compile.from_gguf import open_gguf
from compile.to_gguf.build import build_gguf
from tests.quant.format.random_weights import SCHEMES
from tests.quant.format.tiny_quantized import ATTENTION, MLP, quantized_llama
from tests.tiny import write_tokenizer

TYPES = {
    "w8a8-tensor": "Q8_0",
    "w4a8": "Q4_0",
    "fp8-dynamic": "F32",
    "fp8-block": "F32",
    "nvfp4": "F32",
    "mxfp4": "MXFP4",
}


@pytest.mark.parametrize("name", TYPES)
def test_the_reader_of_gguf_gets_the_same_numbers(tmp_path: Path, name: str) -> None:
    gguf = pytest.importorskip("gguf")
    schemes = dict.fromkeys(ATTENTION + MLP, SCHEMES[name])
    quantized = quantized_llama(tmp_path / "model", schemes, wide=True)
    write_tokenizer(tmp_path / "model")
    build_gguf(tmp_path / "model", tmp_path / "out.gguf")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    down = stored["blk.0.ffn_down.weight"]
    assert down.tensor_type.name == TYPES[name]
    values = gguf.quants.dequantize(down.data, down.tensor_type)
    expected = quantized["model.layers.0.mlp.down_proj.weight"].dequantize()
    np.testing.assert_array_equal(values, expected)
    _, source, _, _ = open_gguf(tmp_path / "out.gguf")
    for tensor, weight in quantized.items():
        assert compare_weights(tensor, weight, source.load(tensor)).state == "equal"
