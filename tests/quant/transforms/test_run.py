"""Transforms in a whole run: alone and stacked, read back by transformers itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quant.format.checkpoint import open_checkpoint
from quant.layers import LayerLoop
from quant.preflight import prepare
from quant.recipe import Recipe, load_recipe
from quant.report import REPORT_NAME
from quant.resume import resume_directory
from quant.run import quantize_checkpoint
from tests.tiny import TEXT, tiny_checkpoint

SMALL = ("calibration.samples=6", "calibration.tokens=24", "scheme.group_size=32")
STACKS = {
    "awq": ["awq={ratios: 4, clip: true}", "algorithm=rtn"],
    "awq-gptq": ["awq={ratios: 4}"],
    "smoothquant-gptq": ["smoothquant={outputs: true}"],
    "rotation-gptq": ["rotation={}"],
    "all-gptaq": ["rotation={}", "smoothquant={}", "awq={ratios: 4}", "algorithm=gptaq"],
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def recipe_of(*asked: str) -> Recipe:
    return load_recipe("w4a16", [*SMALL, *asked])


def logits(directory: Path) -> torch.Tensor:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = torch.randint(3, 384, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        result: torch.Tensor = model(tokens).logits
    return result


@pytest.mark.parametrize(
    ("stack", "family", "options"),
    [
        ("awq", "llama", {"tied": True, "bias": True}),
        ("awq-gptq", "qwen2", {}),
        ("smoothquant-gptq", "qwen3", {"dtype": "float32"}),
        ("rotation-gptq", "llama", {"tied": True}),
        ("all-gptaq", "qwen3", {"tied": True}),
        ("all-gptaq", "mixtral", {}),
        ("awq-gptq", "qwen3_moe", {"dtype": "float32"}),
    ],
)
def test_what_is_written_is_the_model_up_to_eight_bits(
    tmp_path: Path, text: str, stack: str, family: str, options: dict[str, Any]
) -> None:
    """At 8 bits rounding loses little: with a norm, a bias or a scale amiss in the file, the logits
    would be those of another model. Bound: each of 14 linears in groups of 32 loses about 0.5 %,
    and what is stored in bfloat16 another 0.2 %, all of them adding up in the worst case. The
    median of the tokens counts, since one between two experts may go to the other."""
    model = tiny_checkpoint(tmp_path / "model", family, **options)
    asked = [part.replace(", clip: true", "") for part in STACKS[stack]]
    recipe = recipe_of("scheme.num_bits=8", *asked)
    quantize_checkpoint(model, tmp_path / "out", recipe, text)
    before, after = logits(model), logits(tmp_path / "out")
    lost = (after - before).norm(dim=-1) / before.norm(dim=-1)
    assert float(lost.median()) <= 14 * (0.005 + 0.002)
    names = set(open_checkpoint(tmp_path / "out").names())
    untied = {"lm_head.weight"} if options.get("tied") and "rotation={}" in asked else set()
    assert names == set(open_checkpoint(model).names()) | untied


@pytest.mark.parametrize("stack", ["awq", "all-gptaq"])
def test_the_report_and_the_plan_tell(tmp_path: Path, text: str, stack: str) -> None:
    model = tiny_checkpoint(tmp_path / "model", "qwen2")
    recipe = recipe_of(*STACKS[stack])
    report = quantize_checkpoint(model, tmp_path / "out", recipe, text)
    saved = json.loads((tmp_path / "out" / REPORT_NAME).read_text())
    assert saved["notes"] == list(report.notes)
    assert any("scaled by" in note for note in saved["notes"])
    done = {m["module"]: m["transform"] for m in saved["modules"]}
    name = "model.layers.1.mlp.down_proj"
    assert "awq" in done[name] or "unscaled" in done[name]
    assert ("clipped" in done[name]) == (stack == "awq")
    assert ("smoothquant alpha 0.5" in done["model.layers.0.self_attn.q_proj"]) == (stack != "awq")


def test_what_a_plan_says_is_scaled_is_all_that_changes(tmp_path: Path, text: str) -> None:
    model = tiny_checkpoint(tmp_path / "model", "qwen2", dtype="float32")
    recipe = recipe_of("awq={ratios: 4}", "balance=null", "ignore=[lm_head, '*.1.mlp.down_proj']")
    quantize_checkpoint(model, tmp_path / "out", recipe, text)
    plan = prepare(model, recipe).plan
    scaled = {t.name for t in plan.tensors if "scaled by awq" in t.reason}
    before, after = open_checkpoint(model), open_checkpoint(tmp_path / "out")
    kept = {n for n in before.names() if str(after.scheme(n)) == "float32"}
    changed = {n for n in kept if not np.array_equal(before.load_raw(n), after.load_raw(n))}
    assert changed
    assert changed <= scaled
    for name in changed & {"model.layers.1.mlp.down_proj.weight"}:
        ratio = after.load_raw(name) / before.load_raw(name)
        assert set(np.unique(np.frexp(ratio)[0])) == {0.5}


def test_two_runs_give_the_same_bytes_with_any_number_of_threads(tmp_path: Path, text: str) -> None:
    model = tiny_checkpoint(tmp_path / "model", "llama", tied=True)
    recipe = recipe_of(*STACKS["all-gptaq"])
    threads = torch.get_num_threads()
    try:
        for name, count in (("a", 1), ("b", 3)):
            torch.set_num_threads(count)
            quantize_checkpoint(model, tmp_path / name, recipe, text)
    finally:
        torch.set_num_threads(threads)
    for path in (tmp_path / "a").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_run_that_was_cut_off_goes_on_with_its_transforms(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once with the activations kept, once without them: then transformed layers are replayed."""
    model = tiny_checkpoint(tmp_path / "model", "llama", layers=3)
    recipe = recipe_of("awq={ratios: 4}", "smoothquant={}", "algorithm=gptaq")
    quantize_checkpoint(model, tmp_path / "whole", recipe, text)
    honest = LayerLoop.round_layer

    def dying(self: LayerLoop, index: int) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        return honest(self, index)

    for name in ("kept", "lost"):
        monkeypatch.setattr(LayerLoop, "round_layer", dying)
        with pytest.raises(KeyboardInterrupt):
            quantize_checkpoint(model, tmp_path / name, recipe, text)
        monkeypatch.setattr(LayerLoop, "round_layer", honest)
        if name == "lost":
            for path in resume_directory(tmp_path / name).glob("state-*"):
                path.unlink()
        quantize_checkpoint(model, tmp_path / name, recipe, text, resume=True)
        for path in (tmp_path / "whole").iterdir():
            assert path.read_bytes() == (tmp_path / name / path.name).read_bytes(), path.name
