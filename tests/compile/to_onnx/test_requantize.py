"""Builds that were asked for integers by name: what they keep, what they round, and how well."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from compile.compare import compare_weights
from compile.model import Model
from compile.open_model import open_model
from compile.to_onnx.build import build_model
from compile.to_onnx.plan import plan_model
from compile.to_onnx.requantize import requantize
from compile.to_onnx.types import Form
from quant.format.errors import UnsupportedModelError
from quant.format.scheme import CodebookScheme, IntScheme, PerChannel, PerGroup
from quant.format.tensor import QuantizedTensor
from tests.runtime.executors.onnx_models import INT4, SCHEMES, TABLE, VERSION
from tests.tiny import tiny_model

LINEAR = "model.layers.1.mlp.down_proj.weight"
INT8 = SCHEMES["int8-channel"]


def states(model: Model, directory: Path, type_name: str) -> dict[str, str]:
    """What became of each weight, as `verify` sees it."""
    build_model(model, directory, type_name, version=VERSION)
    again = open_model(directory).weights
    return {
        name: compare_weights(name, model.weights.load(name), again.load(name)).state
        for name in model.program.weights()
    }


@pytest.mark.parametrize("scheme", ["int4", "int4-asymmetric", "int4-channel", "int3", "int8"])
def test_integers_that_fit_a_byte_are_kept(scheme: str, tmp_path: Path) -> None:
    model = tiny_model(scheme=SCHEMES[scheme])
    assert set(states(model, tmp_path, "int8").values()) == {"equal"}
    weights = open_model(tmp_path).weights
    read, ours = weights.load(LINEAR), model.weights.load(LINEAR)
    assert isinstance(read, QuantizedTensor) and isinstance(ours, QuantizedTensor)
    assert read.digest() == ours.digest() and read.scheme.num_bits == 8
    assert not any("rounded" in note for note in plan_model(model, "int8", VERSION).notes)


def test_integers_that_do_not_fit_are_rounded_and_told(tmp_path: Path) -> None:
    model = tiny_model(scheme=INT8)
    found = states(model, tmp_path, "int4")
    assert {n for n, s in found.items() if s == "requantized"} == {
        name for name in found if "_proj.weight" in name
    }
    assert set(found.values()) == {"equal", "requantized"}
    (note,) = plan_model(model, "int4", VERSION).notes
    assert "from int8-sym-channel to int4" in note and "14 of the weights" in note
    assert open_model(tmp_path).weights.scheme(LINEAR) == IntScheme(4, False, PerGroup(32))


def test_auto_rounds_nothing(tmp_path: Path) -> None:
    for model in (tiny_model(), tiny_model(scheme=INT8)):
        assert set(states(model, tmp_path, "auto").values()) == {"equal"}


def test_codebooks_are_rounded_where_integers_were_asked_for(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    codes = random.integers(0, 100, (64, 128), dtype=np.int8)
    scheme = CodebookScheme("e4m3", PerChannel())
    weight = QuantizedTensor(scheme, codes, np.full((64, 1), 1e-3, np.float32))
    model = tiny_model(weights={LINEAR: weight}, scheme=INT4)
    for type_name in ("int4", "int8"):
        assert states(model, tmp_path, type_name)[LINEAR] == "requantized"
    with pytest.raises(UnsupportedModelError, match="or onnx:int8, which rounds it again"):
        plan_model(model, "auto", VERSION)


@pytest.mark.parametrize("tied", [False, True])
def test_all_matrices_of_a_float_model_but_routers_are_rounded(tied: bool, tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe", tied=tied)
    found = states(model, tmp_path, "int4")
    weights = open_model(tmp_path).weights
    kinds = {name: str(weights.scheme(name)) for name in found}
    tables = {TABLE} if tied else {TABLE, "lm_head.weight"}
    assert {n for n, kind in kinds.items() if kind == "int8-sym-channel"} == tables
    kept = {name for name, state in found.items() if state == "equal"}
    assert kept and all("norm" in name or "mlp.gate.weight" in name for name in kept)
    assert {kinds[n] for n in found.keys() - kept - tables} == {"int4-asym-g32"}


def test_floats_beside_integers_stay(tmp_path: Path) -> None:
    found = states(tiny_model(scheme=INT8), tmp_path, "int4")
    assert found[TABLE] == found["lm_head.weight"] == "equal"


def nearest(values: npt.NDArray[np.float64], reach: float, half: int) -> npt.NDArray[np.float64]:
    """[groups]: squared error of plain rounding with scales of absmax / reach."""
    scale = np.abs(values).max(-1, keepdims=True) / reach
    error: npt.NDArray[np.float64] = np.square(
        np.clip(np.rint(values / scale), -half, half - 1) * scale - values
    ).sum(-1)
    return error


@pytest.mark.parametrize(("dtype", "group", "half"), [("int4", 32, 8), ("int8", 0, 128)])
def test_searched_scales_lose_less_than_plain_ones(dtype: str, group: int, half: int) -> None:
    random = np.random.default_rng(1)
    values = random.standard_normal((48, 96)).astype(np.float32)
    stored = requantize("w", values, Form(dtype, "", group, rounded=True))
    shape = (48, -1, group or 96)
    exact = values.astype(np.float64).reshape(shape)
    error = np.square(stored.dequantize().astype(np.float64).reshape(shape) - exact).sum(-1)
    for reach in (half - 1, half - 0.5):
        plain = nearest(exact, reach, half)
        # The same choice in another arithmetic may fall another way where two are alike.
        assert (error <= plain * (1 + 1e-5)).all()
    assert error.sum() < (0.9 if dtype == "int4" else 1.0) * plain.sum()
    assert (stored.scale > 0).all()


@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
def test_zero_points_never_lose_and_gain_where_a_group_leans_to_one_side(shift: float) -> None:
    random = np.random.default_rng(2)
    values = (random.standard_normal((48, 96)) + shift).astype(np.float32)
    errors = []
    for zero_points in (False, True):
        stored = requantize("w", values, Form("int4", "", 32, zero_points, rounded=True))
        assert (stored.zero_point is not None) == zero_points
        errors.append(np.square(stored.dequantize() - values).reshape(48, 3, 32).sum(-1))
    symmetric, asymmetric = errors
    assert (asymmetric <= symmetric * (1 + 1e-5)).all()
    assert asymmetric.sum() < (0.9 if shift else 0.97) * symmetric.sum()


def test_groups_of_zeros_have_a_scale_and_columns_choose_the_groups() -> None:
    values = np.zeros((3, 48), np.float32)
    values[1] = 1.0
    stored = requantize("w", values, Form("int4", "", 16, rounded=True))
    assert (stored.scale[[0, 2]] == 1).all() and (stored.codes[[0, 2]] == 0).all()
    np.testing.assert_allclose(stored.dequantize(), values, rtol=1e-6)
    plan = plan_model(tiny_model(intermediate=80), "int4", VERSION)
    groups = {row.tensor: row.form.group for row in plan.rows}
    assert (groups[LINEAR], groups["model.layers.0.mlp.up_proj.weight"]) == (16, 32)


def test_numbers_that_are_not_finite_leave_nothing_behind(tmp_path: Path) -> None:
    model = tiny_model(weights={LINEAR: np.full((64, 128), np.inf, np.float32)})
    with pytest.raises(UnsupportedModelError, match=f"{LINEAR} holds numbers that are not finite"):
        build_model(model, tmp_path, "int8", version=VERSION)
    assert list(tmp_path.iterdir()) == []
