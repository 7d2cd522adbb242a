"""FP8 in blocks of 128x128 on models whose sides 128 does not divide."""

from pathlib import Path

import numpy as np
import pytest
import torch

from quant.format.checkpoint import open_checkpoint
from quant.format.errors import RecipeError
from quant.format.scheme import ActivationScheme, CodebookScheme, PerBlock, PerChannel, PerGroup
from quant.format.tensor import QuantizedTensor
from quant.fp8_blocks import unfit_for_blocks
from quant.preflight import plan_quantization
from quant.recipe import load_recipe, parse_recipe
from quant.resolve import resolve
from quant.rounding_algorithms.dispatch import StageMoments, round_alone, round_stage
from quant.run import quantize_checkpoint
from quant.tasks import Algorithm, LinearTask, RoundingSettings
from quant.workers import fixed_division
from tests.tiny import tiny_checkpoint

BLOCKS = "fp8-block128x128+e4m3-dynamic-g128"
ROWS = "fp8-channel+e4m3-dynamic-token"
SCHEME = CodebookScheme(
    "e4m3", PerBlock(128, 128), activation=ActivationScheme("e4m3", PerGroup(128))
)


@pytest.mark.parametrize(
    ("shapes", "unfit"),
    [
        ({"l.q_proj": (256, 256), "l.k_proj": (128, 256), "l.v_proj": (128, 256)}, ""),
        # Smaller blocks at the lower edge, of a linear that nothing is stacked under.
        ({"l.o_proj": (200, 256), "l.gate_proj": (100, 128)}, ""),
        ({"l.o_proj": (256, 200), "l.down_proj": (200, 256)}, "o_proj"),
        ({"l.q_proj": (256, 256), "l.k_proj": (64, 256)}, "q_proj k_proj"),
        ({"l.gate_proj": (200, 256), "l.up_proj": (200, 256)}, "gate_proj up_proj"),
        ({"l.gate_proj": (200, 256), "m.up_proj": (200, 256)}, ""),
        ({"l.experts.0.w1": (256, 256), "l.experts.0.w2": (256, 256), "l.o": (128, 96)}, "w1 w2 o"),
    ],
)
def test_what_falls_back_and_what_with_it(shapes: dict[str, tuple[int, int]], unfit: str) -> None:
    found = unfit_for_blocks(shapes)
    assert {module.rpartition(".")[2] for module in found} == set(unfit.split())


def test_the_reason_names_what_does_not_fit() -> None:
    stacked = unfit_for_blocks({"l.q_proj": (256, 256), "l.k_proj": (64, 256)})
    assert "64 outputs of l.k_proj" in stacked["l.q_proj"]
    assert "576 inputs" in unfit_for_blocks({"l.o_proj": (128, 576)})["l.o_proj"]


def test_rows_ask_for_what_blocks_would_not_take() -> None:
    """A fallback hides no mistake in the recipe."""
    scheme = {"type": "fp8", "group_size": "block", "activations": "fp8-static"}
    with pytest.raises(RecipeError, match="rounded as they come: set fp8"):
        resolve(parse_recipe({"scheme": scheme}), {"l.o_proj": 100}, ["lm_head"])


def test_planned_written_and_worth_the_same_to_transformers(tmp_path: Path) -> None:
    """Both schemes in one file, and a block of 64 rows at the lower edge of down_proj."""
    transformers = pytest.importorskip("transformers")
    model = tiny_checkpoint(tmp_path / "model", hidden_size=192, intermediate=256)
    recipe = load_recipe("fp8-block")
    plan = {t.name: t for t in plan_quantization(model, recipe).tensors}
    report = quantize_checkpoint(model, tmp_path / "out", recipe)
    assert report.notes == (
        "12 linears do not get what the recipe asks for; model.layers.0.self_attn.q_proj: one "
        "scale per row: blocks of 128 do not fill its 192 inputs",
    )
    written = open_checkpoint(tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32
    )
    assert bool(torch.isfinite(loaded(torch.tensor([[1, 2, 3]])).logits).all())
    weights = dict(loaded.named_parameters())
    seen = set()
    for name in written.names():
        weight = written.load(name)
        assert plan[name].scheme == str(written.scheme(name))
        if isinstance(weight, QuantizedTensor):
            seen.add(str(weight.scheme))
            down = name.endswith("down_proj.weight")
            assert str(weight.scheme) == (BLOCKS if down else ROWS)
            assert down or "one scale per row: blocks of 128 do not fill" in plan[name].reason
            assert bool((weights[name] == torch.from_numpy(weight.dequantize())).all()), name
    assert seen == {BLOCKS, ROWS}


@pytest.mark.parametrize("algorithm", ["rtn", "gptq"])
def test_no_block_reaches_from_one_linear_into_the_next(algorithm: Algorithm) -> None:
    """Linears of 60, 200 and 130 rows that share an input: what is stored decodes to the rounding
    that would have been found for each alone."""
    random = torch.Generator().manual_seed(0)
    rows = {"l.a": 60, "l.b": 200, "l.c": 130}
    weights = {name: torch.randn(n, 128, generator=random) * n for name, n in rows.items()}
    tasks = [LinearTask(name, SCHEME, algorithm) for name in rows]
    moments = StageMoments(torch.eye(128), None, 100, 1.0)
    settings = RoundingSettings(scales="range", polish=0)
    with fixed_division() as workers:
        together = round_stage(tasks, weights, moments, settings, workers)
        for task in tasks:
            alone = round_stage([task], weights, moments, settings, workers)[task.module]
            stored = together[task.module].tensor
            np.testing.assert_array_equal(stored.dequantize(), alone.tensor.dequantize())
            # A largest weight of a block is worth 448 steps, whose rounding loses 16 at most.
            step = np.repeat(np.repeat(stored.scale, 128, 0), 128, 1)[: len(stored.codes), :128]
            lost = np.abs(stored.dequantize() - weights[task.module].numpy())
            assert (lost <= 16.0 * step * (1 + 2**-20)).all()


def test_without_calibration_neither() -> None:
    """gate_proj and up_proj share what a tensor shares."""
    weights = {"l.gate_proj": torch.ones(60, 128), "l.up_proj": torch.full((60, 128), 3.0)}
    tasks = [LinearTask(name, SCHEME, "rtn") for name in weights]
    for name, result in round_alone(tasks, weights, RoundingSettings(scales="range")).items():
        largest = float(weights[name].max())
        np.testing.assert_allclose(result.tensor.scale, [[largest / 448.0]], rtol=2**-8)


def test_one_scale_per_row_is_that_of_the_recipe_for_rows(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", hidden_size=192, intermediate=200)
    for name in ("fp8-block", "fp8-dynamic"):
        quantize_checkpoint(model, tmp_path / name, load_recipe(name, ["scales=range"]))
    one, other = open_checkpoint(tmp_path / "fp8-block"), open_checkpoint(tmp_path / "fp8-dynamic")
    for name in one.names():
        ours, theirs = one.load(name), other.load(name)
        if isinstance(ours, QuantizedTensor) and isinstance(theirs, QuantizedTensor):
            assert ours.scheme.granularity == PerChannel()
            assert ours.digest() == theirs.digest()
