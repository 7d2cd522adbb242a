"""The token table and the output head as targets of their own."""

from pathlib import Path

import numpy as np
import pytest
import torch

from coldpress.planning import plan_quantize
from quant.calibration import FileSource
from quant.format.checkpoint import open_checkpoint
from quant.format.errors import RecipeError
from quant.format.tensor import QuantizedTensor
from quant.preflight import plan_quantization
from quant.recipe import Recipe, load_recipe
from quant.run import quantize_checkpoint
from tests.tiny import TEXT, tiny_checkpoint

SMALL = ("scheme.group_size=32", "calibration.samples=6", "calibration.tokens=24")
EIGHT = "{num_bits: 8, group_size: 32}"


def recipe_of(*more: str) -> Recipe:
    return load_recipe("w4a16", [*SMALL, *more])


@pytest.fixture
def text(tmp_path: Path) -> FileSource:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return FileSource(path)


def test_both_tables(tmp_path: Path, text: FileSource) -> None:
    """Stored as asked, by way of the ordinary reader; and the layers saw the rounded table."""
    model = tiny_checkpoint(tmp_path / "model", "llama", tied=False)
    recipe = recipe_of(f"embeddings={EIGHT}", f"lm_head={EIGHT}")
    report = quantize_checkpoint(model, tmp_path / "out", recipe, text)
    written = open_checkpoint(tmp_path / "out")
    assert report.bits_per_weight == pytest.approx(
        8 * plan_quantization(model, recipe).total_bytes / report.parameters, abs=1e-4
    )
    by_module = {module.module: module for module in report.modules}
    for name in ("model.embed_tokens", "lm_head"):
        tensor = written.load(f"{name}.weight")
        assert isinstance(tensor, QuantizedTensor)
        assert str(tensor.scheme) == "int8-sym-g32"
        assert by_module[name].state == "as asked"
    assert by_module["model.embed_tokens"].algorithm == "rtn"
    assert by_module["lm_head"].algorithm == "gptq"
    assert by_module["lm_head"].tokens == 6 * 24
    plain = quantize_checkpoint(model, tmp_path / "plain", recipe_of(), text)
    first = "model.layers.0.self_attn.q_proj"
    errors = {m.module: m.output_error for m in plain.modules}
    assert errors[first] != by_module[first].output_error


def test_the_head_reads_the_final_norm(tmp_path: Path, text: FileSource) -> None:
    """Its output error is what a whole model with every rounded weight measures at the head."""
    import transformers

    from quant.calibration import gather
    from quant.preflight import prepare

    model = tiny_checkpoint(tmp_path / "model", "llama", tied=False, dtype="float32")
    recipe = recipe_of("balance=null", f"lm_head={EIGHT}", "gptq.first_token_share=0")
    report = quantize_checkpoint(model, tmp_path / "out", recipe, text)
    prepared = prepare(model, recipe)
    data = gather(text, prepared.source, prepared.skeleton, recipe.calibration)
    whole = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    written = open_checkpoint(tmp_path / "out")
    seen: list[torch.Tensor] = []
    original = whole.lm_head.weight.data.clone()
    for module in report.modules:
        value = written.load(f"{module.module}.weight")
        if isinstance(value, QuantizedTensor):
            worth = torch.from_numpy(value.dequantize())
            whole.get_submodule(module.module).weight.data.copy_(worth)
    whole.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        whole(torch.from_numpy(data.tokens))
    inputs = seen[0].reshape(-1, original.shape[1])
    lost = inputs @ (original - whole.lm_head.weight.data).T
    expected = float(lost.norm() / (inputs @ original.T).norm())
    (head,) = (m for m in report.modules if m.module == "lm_head")
    assert head.output_error == pytest.approx(expected, rel=1e-3)


def test_a_tied_table_is_stored_once(tmp_path: Path, text: FileSource) -> None:
    model = tiny_checkpoint(tmp_path / "model", "llama", tied=True)
    quantize_checkpoint(model, tmp_path / "out", recipe_of(f"embeddings={EIGHT}"), text)
    written = open_checkpoint(tmp_path / "out")
    assert isinstance(written.load("model.embed_tokens.weight"), QuantizedTensor)
    assert "lm_head.weight" not in written.names()


def test_without_calibration(tmp_path: Path, text: FileSource) -> None:
    model = tiny_checkpoint(tmp_path / "model", "llama", tied=False)
    recipe = load_recipe(
        "rtn-w4a16", ["scheme.group_size=32", f"embeddings={EIGHT}", f"lm_head={EIGHT}"]
    )
    quantize_checkpoint(model, tmp_path / "out", recipe, text)
    table = open_checkpoint(tmp_path / "out").load("lm_head.weight")
    source = np.asarray(open_checkpoint(model).load("lm_head.weight"), dtype=np.float32)
    assert isinstance(table, QuantizedTensor)
    # The search keeps a grid only where it loses less than the one that clips nothing, whose
    # weights are at most half a step off; bfloat16 rounds that step by up to 2**-8.
    step = np.abs(source).reshape(-1, 32).max(axis=1) / 127 * (1 + 2.0**-8)
    lost = (table.dequantize() - source).reshape(-1, 32)
    assert (np.square(lost).mean(axis=1) <= np.square(step / 2 * 1.01)).all()


def test_refusals(tmp_path: Path) -> None:
    tied = tiny_checkpoint(tmp_path / "tied", "llama", tied=True)
    with pytest.raises(RecipeError, match="set 'embeddings' instead"):
        plan_quantization(tied, recipe_of(f"lm_head={EIGHT}"))
    with pytest.raises(RecipeError, match="does not divide 64 columns"):
        plan_quantization(tied, recipe_of("embeddings={group_size: 128}"))


def test_a_head_that_is_the_table_is_rounded_with_it(tmp_path: Path) -> None:
    """A recipe may name both, for models of either kind; the plan tells."""
    tied = tiny_checkpoint(tmp_path / "tied", "llama", tied=True)
    both = recipe_of(f"embeddings={EIGHT}", "lm_head={num_bits: 4, group_size: 32}")
    plan, alone = (plan_quantization(tied, r) for r in (both, recipe_of(f"embeddings={EIGHT}")))
    assert plan.tensors == alone.tensors
    assert [note for note in plan.notes if note not in alone.notes] == [
        "lm_head is the token table in this model, which is rounded as 'embeddings' says"
    ]


def test_the_plan_knows_the_file_to_the_byte(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", "llama")
    options = (f"embeddings={EIGHT}", f"lm_head={EIGHT}", "scheme.group_size=32")
    planned = plan_quantize(model, "rtn-w4a16", options)
    report = quantize_checkpoint(model, tmp_path / "out", load_recipe("rtn-w4a16", options))
    assert planned["file_bytes"] == report.bytes
