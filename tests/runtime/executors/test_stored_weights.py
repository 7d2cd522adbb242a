"""What is packed from a file's own blocks is what its decoded weights would be packed to."""

from pathlib import Path

import numpy as np
import pytest

from compile.from_gguf import GgufWeights
from compile.open_model import open_model
from compile.to_gguf.build import build_gguf
from quant.format.stored import HoldsIntegers
from quant.format.tensor import QuantizedTensor
from runtime.executors.cpu.weights import pack, pack_stored
from runtime.kernels.cpu._native import ThreadPool
from tests.tiny import tiny_checkpoint


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_every_matrix_of_a_file_is_the_same_either_way(tmp_path: Path, kind: str) -> None:
    """Those of queries and keys too, whose rows a file has in another order."""
    checkpoint = tiny_checkpoint(
        tmp_path / "float", hidden_size=256, intermediate_size=256, num_attention_heads=4
    )
    build_gguf(checkpoint, tmp_path / "model.gguf", kind)
    source, pool = open_model(tmp_path / "model.gguf").weights, ThreadPool(1)
    assert isinstance(source, GgufWeights) and isinstance(source, HoldsIntegers)
    compared = 0
    for name in source.names():
        stored, weight = source.stored(name), source.load(name)
        assert (stored is not None) == isinstance(weight, QuantizedTensor)
        if stored is not None:
            found, expected = pack_stored(stored, pool, True), pack(weight, pool, None, True)
            assert found.rounding == expected.rounding
            np.testing.assert_array_equal(found.matrix.dequantize(), expected.matrix.dequantize())
            compared += 1
    assert compared > 7
