"""Balanced columns against an oracle in NumPy's float64, and what balancing is for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.calibration import FileSource
from quant.recipe import load_recipe
from quant.run import quantize_checkpoint
from quant.transforms.balance import balance_loss, balanced_scale
from tests.tiny import TEXT, tiny_checkpoint

SMALL = ("scheme.group_size=32", "calibration.samples=8", "calibration.tokens=24")


def slow_loss(
    weights: list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]],
    sizes: list[int],
    energy: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    scale: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> float:
    total = 0.0
    for weight, size in zip(weights, sizes, strict=True):
        for start in range(0, weight.shape[1], size):
            group = slice(start, start + size)
            steps = sum(max(abs(row[group] * scale[group])) ** 2 for row in weight)
            total += steps * sum(energy[group] / scale[group] ** 2)
    return total


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    columns=st.integers(1, 20),
    sizes=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    spread=st.floats(0.0, 3.0),
)
def test_the_loss_and_that_it_only_falls(
    seed: int, columns: int, sizes: list[int], spread: float
) -> None:
    random = np.random.default_rng(seed)
    column = np.exp(spread * random.standard_normal(columns))
    weights = [random.standard_normal((5, columns)) * column for _ in sizes]
    energy = np.exp(spread * random.standard_normal(columns))
    tensors = [torch.from_numpy(weight).float() for weight in weights]
    energies = torch.from_numpy(energy).float()
    scale = balanced_scale(tensors, sizes, energies)
    before = slow_loss(weights, sizes, energy, np.ones(columns))
    assert balance_loss(tensors, sizes, energies, torch.ones(columns)) == pytest.approx(
        before, 1e-4
    )
    if scale is not None:
        after = slow_loss(weights, sizes, energy, scale.double().numpy())
        assert balance_loss(tensors, sizes, energies, scale) == pytest.approx(after, 1e-4)
        assert after <= before * (1 + 1e-4)
        assert float(scale.log().mean()) == pytest.approx(0.0, abs=1e-4)


def test_awkward_columns_are_undone() -> None:
    """Columns that were scaled apart, inputs the other way round: nearly all of it comes back."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=random)
    awkward = torch.exp((torch.rand(64, generator=random) * 2 - 1) * 1.5)
    energy = 1 / awkward.square()
    plain = balance_loss([weight], [32], torch.ones(64), torch.ones(64))
    scaled = weight * awkward
    scale = balanced_scale([scaled], [32], energy)
    assert scale is not None
    assert balance_loss([scaled], [32], energy, torch.ones(64)) > 2 * plain
    assert balance_loss([scaled], [32], energy, scale) < 1.1 * plain


def test_zero_columns_and_unread_inputs() -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    weight[:, 2] = 0
    energy = torch.ones(8)
    energy[5] = 0
    scale = balanced_scale([weight], [4], energy)
    assert scale is None or (bool(torch.isfinite(scale).all()) and bool((scale > 0).all()))
    assert balanced_scale([torch.zeros(4, 8)], [4], torch.zeros(8)) is None


def test_in_a_run(tmp_path: Path) -> None:
    """The model's function stays (int8, so that rounding hardly shows), norms change, and at 4 bits
    outputs lose less than without."""
    from quant.format.checkpoint import open_checkpoint

    model = tiny_checkpoint(tmp_path / "model", "llama", dtype="float32")
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    recipe = load_recipe("w4a16", [*SMALL, "balance={}", "scheme.num_bits=8"])
    report = quantize_checkpoint(model, tmp_path / "out", recipe, FileSource(text))
    assert all(m.state == "as asked" for m in report.modules if m.digest is not None)
    before, after = open_checkpoint(model), open_checkpoint(tmp_path / "out")
    name = "model.layers.0.input_layernorm.weight"
    assert not np.array_equal(before.load_raw(name), after.load_raw(name))
    assert logits_error(tmp_path / "model", tmp_path / "out") < 0.02


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
