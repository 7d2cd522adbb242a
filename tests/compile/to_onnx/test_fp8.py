"""FP8 weights in ONNX: the same bytes, and the oracle's logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compile.compare import compare_weights
from compile.onnx_bytes import FP8
from compile.open_model import open_model
from compile.to_onnx.build import build_model
from compile.to_onnx.plan import plan_model
from quant.format.errors import UnsupportedModelError
from quant.format.scheme import CodebookScheme, IntScheme, PerBlock, PerGroup
from runtime.executors.onnx import OnnxExecutor
from runtime.executors.torch import TorchExecutor
from tests.compile.to_onnx.fp8_models import FP8_SCHEMES, fp8_model, fp8_weight
from tests.runtime.executors.onnx_models import (
    MIXED,
    NUM_PAGES,
    PAGE_SIZE,
    rounding_bound,
    run_schedule,
    sequences_of,
)
from tests.tiny import tiny_model

POOL: dict[str, Any] = {"num_pages": NUM_PAGES, "page_size": PAGE_SIZE}


@pytest.mark.parametrize("name", FP8_SCHEMES)
def test_the_same_numbers_come_back_and_give_the_oracles_logits(tmp_path: Path, name: str) -> None:
    model = fp8_model(name)
    build = build_model(model, tmp_path, "fp8", version="test")
    kept = [row.tensor for row in build.rows if row.form.dtype == FP8]
    assert len(kept) == 7 * model.program.sizes.layers
    artifact = open_model(tmp_path)
    for tensor in model.program.weights():
        pair = model.weights.load(tensor), artifact.weights.load(tensor)
        assert compare_weights(tensor, *pair).state == "equal", tensor
    # The graph multiplies by inputs as they are, as does its own Program.
    oracle = TorchExecutor(artifact, dtype="float64", **POOL)
    expected = run_schedule(oracle, MIXED, sequences_of(MIXED))
    executor = OnnxExecutor(artifact, exact=True, threads=1, **POOL)
    found = run_schedule(executor, MIXED, sequences_of(MIXED))
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() <= rounding_bound(model, theirs)
    assert any("rounds the inputs" in note for note in build.notes) == (name == "dynamic")


def test_integers_and_floats_are_as_stored_beside_it() -> None:
    model = tiny_model(scheme=IntScheme(4, False, PerGroup(32)))
    auto, fp8 = (plan_model(model, name, "test") for name in ("auto", "fp8"))
    assert [row.form for row in auto.rows] == [row.form for row in fp8.rows]


def test_without_being_asked_fp8_is_refused_with_the_word_for_it() -> None:
    with pytest.raises(UnsupportedModelError, match="or onnx:fp8"):
        plan_model(fp8_model("channel"), "auto", "test")


def test_blocks_that_do_not_divide_the_columns_are_refused() -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    plain = tiny_model(hidden_size=192)
    scheme = CodebookScheme("e4m3", PerBlock(128, 128))
    weight = fp8_weight(plain.weights.load(name), scheme)
    model = tiny_model(hidden_size=192, weights={name: weight})
    with pytest.raises(UnsupportedModelError, match=f"tensor {name} .*divide the columns"):
        plan_model(model, "fp8", "test")


def test_other_codebooks_are_refused() -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    plain = tiny_model().weights.load(name)
    weight = fp8_weight(plain, CodebookScheme("e2m1", PerBlock(128, 128)))
    with pytest.raises(UnsupportedModelError, match="onnx:fp8 holds E4M3"):
        plan_model(tiny_model(weights={name: weight}), "fp8", "test")
