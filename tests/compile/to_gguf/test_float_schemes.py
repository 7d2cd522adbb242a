"""Weights of small floats and of one scale for all: what a GGUF reader gets is what ours are."""

from pathlib import Path

import numpy as np
import pytest

from compile.compare import compare_weights
from compile.from_gguf import open_gguf
from compile.to_gguf.build import build_gguf
from quant.format.tensor import QuantizedTensor
from tests.quant.format.random_weights import SCHEMES
from tests.quant.format.tiny_quantized import ATTENTION, MLP, quantized_llama
from tests.tiny import write_tokenizer

TYPES = {
    "w8a8-tensor": "Q8_0",
    "w4a8": "Q4_0",
    "fp8-dynamic": "F32",
    "fp8-block": "F32",
    "nvfp4": "NVFP4",
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
    weight = quantized["model.layers.0.mlp.down_proj.weight"]
    if name == "nvfp4":
        # Others divide by a factor, GGUF multiplies: one over it is rounded to float32.
        values = values * stored["blk.0.ffn_down.scale"].data
        np.testing.assert_allclose(values, weight.dequantize(), rtol=2**-22)
    else:
        np.testing.assert_array_equal(values, weight.dequantize())
    _, source, _, _ = open_gguf(tmp_path / "out.gguf")
    for tensor, weight in quantized.items():
        found = source.load(tensor)
        states = ("equal", "rounded") if name == "nvfp4" else ("equal",)
        assert compare_weights(tensor, weight, found).state in states
        assert isinstance(found, QuantizedTensor) == (TYPES[name] != "F32")
        if isinstance(found, QuantizedTensor) and name in ("nvfp4", "mxfp4"):
            assert np.array_equal(found.codes, weight.codes)
            assert np.array_equal(found.scale.view(np.uint8), weight.scale.view(np.uint8))
