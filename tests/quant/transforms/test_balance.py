"""Balanced columns against an oracle in NumPy's float64, and what balancing is for."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from quant.calibration import FileSource
from quant.recipe import load_recipe
from quant.run import quantize_checkpoint
from quant.transforms.balance import RoundedRows, balance_loss, balanced_scale
from quant.transforms.points import FoldPoint
from tests.tiny import TEXT, tiny_checkpoint

SMALL = ("scheme.group_size=32", "calibration.samples=8", "calibration.tokens=24")


Array = npt.NDArray[np.float64]


def slow_steps(row: Array) -> float:
    return float((row**8).sum() ** (2 / 8))


def slow_loss(weights: list[Array], sizes: list[int], costs: Array, scale: Array) -> float:
    total = 0.0
    for weight, size in zip(weights, sizes, strict=True):
        for start in range(0, weight.shape[1], size):
            group = slice(start, start + size)
            steps = sum(slow_steps(row[group] * scale[group]) for row in weight)
            total += steps * sum(costs[group] / scale[group] ** 2)
    return total


def norm_point(channels: int) -> FoldPoint:
    return FoldPoint("norm", "norm", ("reader",), "block", channels)


def rows_of(weights: list[Array], sizes: list[int], costs: Array) -> list[RoundedRows]:
    return [
        RoundedRows(torch.from_numpy(weight).float(), size, torch.from_numpy(costs).float(), 1.0)
        for weight, size in zip(weights, sizes, strict=True)
    ]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    columns=st.integers(1, 20),
    sizes=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    spread=st.floats(0.0, 2.0),
)
def test_the_loss_and_that_it_only_falls(
    seed: int, columns: int, sizes: list[int], spread: float
) -> None:
    random = np.random.default_rng(seed)
    column = np.exp(spread * random.standard_normal(columns))
    weights = [random.standard_normal((5, columns)) * column for _ in sizes]
    costs = np.exp(spread * random.standard_normal(columns))
    costs = np.maximum(costs, 0.01 * costs.mean())
    rows = rows_of(weights, sizes, costs)
    before = slow_loss(weights, sizes, costs, np.ones(columns))
    assert balance_loss(rows, torch.ones(columns)) == pytest.approx(before, 1e-4)
    scale = balanced_scale(norm_point(columns), rows)
    if scale is not None:
        after = slow_loss(weights, sizes, costs, scale.double().numpy())
        assert balance_loss(rows, scale) == pytest.approx(after, 1e-4)
        assert after <= 0.97 * before * (1 + 1e-4)
        assert float(scale.log().mean()) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("spread", [0.5, 1.5])
def test_no_small_move_is_better(spread: float) -> None:
    """Many rows, so that the loss is smooth: its slope along every scale's logarithm, in float64,
    is next to nothing beside what it was."""
    random = np.random.default_rng(1)
    column = np.exp(spread * random.standard_normal(32))
    weights = [random.standard_normal((200, 32)) * column for _ in range(2)]
    costs = np.exp(spread * random.standard_normal(32))
    costs = np.maximum(costs, 0.01 * costs.mean())
    scale = balanced_scale(norm_point(32), rows_of(weights, [16, 8], costs))
    assert scale is not None

    def slopes(at: Array) -> Array:
        found = list[float]()
        for column in range(32):
            move = np.zeros(32)
            move[column] = 1e-4
            high = slow_loss(weights, [16, 8], costs, at * np.exp(move))
            low = slow_loss(weights, [16, 8], costs, at * np.exp(-move))
            found.append(float(np.log(high) - np.log(low)) / 2e-4)
        return np.abs(np.array(found, np.float64))

    assert slopes(scale.double().numpy()).max() < 0.02 * slopes(np.ones(32)).max()


def test_awkward_columns_are_undone() -> None:
    """Columns that were scaled apart, inputs the other way round: nearly all of it comes back."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=random)
    awkward = torch.exp((torch.rand(64, generator=random) * 2 - 1) * 1.5)
    costs = 1 / awkward.square()
    plain = balance_loss([RoundedRows(weight, 32, torch.ones(64), 7.5)], torch.ones(64))
    rows = [RoundedRows(weight * awkward, 32, costs, 7.5)]
    scale = balanced_scale(norm_point(64), rows)
    assert scale is not None
    assert balance_loss(rows, torch.ones(64)) > 2 * plain
    assert balance_loss(rows, scale) < 1.01 * plain


@pytest.mark.parametrize("levels", [7.5, 127.5, 1e6])
def test_outliers_of_inputs_move_into_weights(levels: float) -> None:
    """Inputs at 8 bits, weights at `levels`: what both lose together, by an oracle that rounds, is
    less, and no strength of SmoothQuant's makes it less still, but for a twentieth: the norm and
    the even spread of errors are a model. Weights that lose nothing leave all to the inputs."""
    random = np.random.default_rng(3)
    inputs = random.standard_normal((256, 32))
    inputs[:, 3] *= 30.0
    weight = random.standard_normal((64, 32))
    rows = RoundedRows(
        torch.from_numpy(weight).float(), 32, torch.from_numpy((inputs**2).mean(0)).float(), levels
    )
    costs = torch.from_numpy((weight**2).sum(0) / 256).float()
    tokens = RoundedRows(torch.from_numpy(inputs).float(), 32, costs, 127.5, inverse=True)
    scale = balanced_scale(norm_point(32), [rows, tokens])
    assert scale is not None and int(scale.argmax()) == 3
    if levels == 1e6:
        alone = balanced_scale(norm_point(32), [tokens])
        assert alone is not None
        torch.testing.assert_close(scale, alone, rtol=1e-3, atol=0)

    def lost(scale: Array) -> float:
        x, w = inputs / scale, weight * scale
        x_step = np.abs(x).max(1, keepdims=True) / 127.5
        w_step = np.abs(w).max(1, keepdims=True) / levels
        rounded = (np.round(x / x_step) * x_step) @ (np.round(w / w_step) * w_step).T
        return float(np.square(rounded - inputs @ weight.T).mean())

    most, largest = np.abs(inputs).max(0), np.abs(weight).max(0)
    smoothed = [lost(most**alpha / largest ** (1 - alpha)) for alpha in np.linspace(0, 1, 11)]
    found = lost(scale.double().numpy())
    assert found < 0.9 * lost(np.ones(32)) and found < 1.05 * min(smoothed)


def test_columns_that_share_a_channel() -> None:
    """Two query heads read one value head: scales by channel, from what both lose."""
    weight = torch.randn(64, 8, generator=torch.Generator().manual_seed(2))
    weight[:, [1, 5]] *= 4.0  # the same channel in both heads
    point = FoldPoint("heads", "v_proj", ("o_proj",), "o_proj", 4, head_dim=4, repeats=2)
    scale = balanced_scale(point, [RoundedRows(weight, 8, torch.ones(8), 7.5)])
    assert scale is not None and scale.shape == (4,)
    assert int(scale.argmin()) == 1 and float(scale[1]) < 0.7 * float(scale[[0, 2, 3]].min())


def test_zero_columns_and_unread_inputs() -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    weight[:, 2] = 0
    costs = torch.ones(8)
    costs[5] = 0
    scale = balanced_scale(norm_point(8), [RoundedRows(weight, 4, costs, 7.5)])
    assert scale is not None
    assert bool(torch.isfinite(scale).all()) and bool((scale > 0).all())
    nothing = [RoundedRows(torch.zeros(4, 8), 4, torch.zeros(8), 7.5)]
    assert balanced_scale(norm_point(8), nothing) is None


def test_in_a_run(tmp_path: Path) -> None:
    """The model's function stays (int8, so that rounding hardly shows), norms change, and at 4 bits
    outputs lose less than without."""
    from quant.format.checkpoint import open_checkpoint

    model = tiny_checkpoint(tmp_path / "model", "llama", dtype="float32")
    make_awkward(model / "model.safetensors")
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    recipe = load_recipe("w4a16", [*SMALL, "balance={}", "scheme.num_bits=8"])
    report = quantize_checkpoint(model, tmp_path / "out", recipe, FileSource(text))
    assert all(m.state == "as asked" for m in report.modules if m.digest is not None)
    told = {m.module: m.transform for m in report.modules}
    assert told["model.layers.0.self_attn.k_proj"] == "balanced"
    before, after = open_checkpoint(model), open_checkpoint(tmp_path / "out")
    name = "model.layers.0.input_layernorm.weight"
    assert not np.array_equal(before.load_raw(name), after.load_raw(name))
    assert logits_error(tmp_path / "model", tmp_path / "out") < 0.02


def make_awkward(path: Path) -> None:
    """Channels of the first norm are scaled apart, and back where they are read."""
    tensors = load_file(path)
    norm = tensors["model.layers.0.input_layernorm.weight"]
    scale = np.exp(np.random.default_rng(0).standard_normal(len(norm))).astype(np.float32)
    norm /= scale
    for name in ("q_proj", "k_proj", "v_proj"):
        tensors[f"model.layers.0.self_attn.{name}.weight"] *= scale
    save_file(tensors, path, {"format": "pt"})


def logits_error(model: Path, other: Path) -> float:
    import transformers

    tokens = torch.randint(3, 384, (2, 16), generator=torch.Generator().manual_seed(0))
    logits = []
    for path in (model, other):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        with torch.no_grad():
            logits.append(loaded(tokens).logits)
    return float((logits[0] - logits[1]).norm() / logits[0].norm())


def test_a_family_without_known_places_is_told(tmp_path: Path) -> None:
    from quant.transforms.asked import layer_transforms

    recipe = load_recipe("w4a16", ["balance={}"])
    assert layer_transforms(recipe, {"model_type": "unheard_of"}) is None
