"""One digest in every container, another one for any other number."""

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from compile.digest import tensor_digest
from compile.open_model import open_model
from compile.to_gguf import build_gguf
from compile.verify import verify
from quant.format.scheme import IntScheme, PerChannel, PerGroup
from quant.format.tensor import QuantizedTensor, Weight
from tests.tiny import tiny_checkpoint

SCHEMES = [
    IntScheme(4, True, PerGroup(64)),
    IntScheme(4, False, PerGroup(32)),
    IntScheme(8, True, PerChannel()),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_container_has_the_same_digests(scheme: IntScheme, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from compile.to_onnx.build import build_onnx

    source = tiny_checkpoint(tmp_path / "model", scheme=scheme)
    build_gguf(source, tmp_path / "model.gguf")
    (tmp_path / "onnx").mkdir()
    build_onnx(source, tmp_path / "onnx", version="0")
    (tmp_path / "onnx" / "config.json").write_bytes((source / "config.json").read_bytes())
    expected = {n: tensor_digest(w) for n, w in weights(source).items()}
    assert len(set(expected.values())) == len(expected)
    assert {n: tensor_digest(w) for n, w in weights(tmp_path / "model.gguf").items()} == expected
    assert {n: tensor_digest(w) for n, w in weights(tmp_path / "onnx").items()} == expected
    report = verify(tmp_path / "model.gguf", source)
    assert {t.name: t.digest for t in report.tensors} == expected
    assert all(t.digest == t.reference_digest for t in report.tensors)


def weights(path: Path) -> dict[str, Weight]:
    model = open_model(path)
    return {name: model.weights.load(name) for name in model.program.weights()}


def weight() -> QuantizedTensor:
    random = np.random.default_rng(0)
    codes = random.integers(-8, 8, (6, 64)).astype(np.int8)
    scale = random.uniform(0.5, 1, (6, 2)).astype(ml_dtypes.bfloat16)
    zero_point = random.integers(-3, 3, (6, 2)).astype(np.int8)
    return QuantizedTensor(IntScheme(4, False, PerGroup(32)), codes, scale, zero_point)


def test_what_is_stored_otherwise_but_means_the_same_has_the_same_digest() -> None:
    """Repeated scales, wider ones, and codes with their zero points taken off."""
    first = weight()
    assert first.zero_point is not None
    net = first.codes - np.repeat(first.zero_point, 32, axis=1)
    wide = np.repeat(first.scale.astype(np.float32), 2, axis=1)
    other = QuantizedTensor(IntScheme(5, True, PerGroup(16)), net.astype(np.int8), wide)
    assert tensor_digest(other) == tensor_digest(first)
    index = np.arange(64, dtype=np.int32) // 32
    assert tensor_digest(replace(first, group_index=index)) == tensor_digest(first)


def test_any_other_number_has_another_digest() -> None:
    first = weight()
    assert first.zero_point is not None
    seen = {tensor_digest(first)}
    for field in ("codes", "scale", "zero_point"):
        changed = getattr(first, field).copy()
        changed[3, 1] = changed[3, 1] + 1
        seen.add(tensor_digest(replace(first, **{field: changed})))
    seen.add(tensor_digest(replace(first, minimum=np.zeros((6, 2), np.float16))))
    seen.add(tensor_digest(first.take_rows(np.array([1, 0, 2, 3, 4, 5], np.intp))))
    floats = first.dequantize()
    seen |= {tensor_digest(floats), tensor_digest(floats.T), tensor_digest(-floats)}
    assert len(seen) == 9


def test_floats_are_their_values_whatever_their_type() -> None:
    values = np.linspace(-2, 2, 9).astype(ml_dtypes.bfloat16)
    assert tensor_digest(values) == tensor_digest(values.astype(np.float32))
