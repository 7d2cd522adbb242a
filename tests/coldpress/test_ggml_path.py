"""From a float checkpoint by a mix of ggml's types to a GGUF file that is read and served."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coldpress.inspection import stored_bytes
from compile.gguf_names import gguf_name, halves_order, rope_heads
from compile.open_model import open_model
from compile.to_gguf import build_gguf, plan_gguf
from quant.format.checkpoint import open_checkpoint
from quant.format.errors import RecipeError
from quant.format.ggml_mix import facts_of, mix_type
from quant.format.gguf_blocks import encode
from quant.format.gguf_types import TYPE_BY_NAME
from quant.format.tensor import QuantizedTensor
from quant.preflight import plan_quantization
from quant.recipe import load_recipe, recipe_names
from quant.run import quantize_checkpoint
from runtime.engine.batch import StepBatch
from tests.tiny import tiny_checkpoint

gguf = pytest.importorskip("gguf")

FEW = ("calibration.samples=2", "calibration.tokens=16", "gptq.polish=1")
SIZES: Mapping[str, Any] = {"hidden_size": 256, "intermediate": 512, "layers": 3, "heads": 4}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("ggml") / "model", "llama", tied=True, **SIZES)


@pytest.fixture(scope="module")
def checkpoint(source: Path) -> Path:
    out = source.parent / "q4_k_m"
    quantize_checkpoint(source, out, load_recipe("gguf-q4_k_m", FEW))
    return out


@pytest.fixture(scope="module")
def artifact(checkpoint: Path) -> Path:
    out = checkpoint.parent / "model.gguf"
    build_gguf(checkpoint, out)
    return out


def test_every_matrix_has_the_type_of_the_mix(checkpoint: Path, artifact: Path) -> None:
    opened = open_checkpoint(checkpoint)
    facts = facts_of(opened.config)
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(artifact).tensors}
    assert set(types.values()) == {"Q4_K", "Q6_K", "F32"}
    for name in opened.names():
        shape = opened.shape(name)
        expected = "F32"
        if len(shape) == 2:
            kind = mix_type("Q4_K_M", name.removesuffix(".weight"), shape[1], facts)
            assert kind is not None
            expected = kind.name
        assert types[str(gguf_name(name))] == expected, name


def test_the_file_holds_the_same_blocks(checkpoint: Path, artifact: Path) -> None:
    """Byte by byte, but for the order of the rows of q and k."""
    opened, seen = open_checkpoint(checkpoint), 0
    stored = {t.name: t for t in gguf.GGUFReader(artifact).tensors}
    for name in opened.names():
        weight = opened.load(name)
        if not isinstance(weight, QuantizedTensor):
            continue
        tensor = stored[str(gguf_name(name))]
        rows = np.asarray(tensor.data)
        values = gguf.quants.dequantize(rows, tensor.tensor_type)
        heads = rope_heads(name, 4, 2)
        if heads is not None:
            order = halves_order(len(rows), heads)
            rows, values = rows[order], values[order]
        assert np.array_equal(rows, encode(name, TYPE_BY_NAME[tensor.tensor_type.name], weight))
        assert np.array_equal(values, weight.dequantize())
        seen += 1
    assert seen == 3 * 7


def test_the_header_names_the_mix(artifact: Path) -> None:
    field = gguf.GGUFReader(artifact).fields["general.file_type"]
    assert int(field.parts[field.data[0]][0]) == gguf.LlamaFileType.MOSTLY_Q4_K_M


def test_both_executors_serve_the_file_as_its_numbers_say(source: Path, artifact: Path) -> None:
    torch_executor = pytest.importorskip("runtime.executors.torch")
    native = pytest.importorskip("runtime.executors.cpu")
    model = open_model(artifact)
    assert model.notes == ()
    oracle = torch_executor.TorchExecutor(model, num_pages=4).step(step())
    ours = native.CpuExecutor(model, num_pages=4).step(step())
    original = torch_executor.TorchExecutor(open_model(source), num_pages=4).step(step())
    assert np.abs(ours - oracle).max() < 1e-4 * np.abs(oracle).max()
    assert 0 < np.abs(oracle - original).mean() < 0.5 * original.std()


def step() -> StepBatch:
    """Twelve tokens of one sequence, logits of all."""
    count = 12
    return StepBatch(
        token_ids=np.arange(5, 5 + count, dtype=np.int32),
        positions=np.arange(count, dtype=np.int32),
        query_starts=np.array([0, count], np.int32),
        page_table=np.array([[1, 2]], np.int32),
        logit_rows=np.arange(count, dtype=np.int32),
    )


def test_a_float_model_is_rounded_by_a_mix_without_calibration(source: Path) -> None:
    out = source.parent / "rtn.gguf"
    plan = plan_gguf(source, "q3_k_m")
    built = build_gguf(source, out, "q3_k_m")
    assert built.file_bytes == plan.file_bytes == out.stat().st_size
    types = {row.tensor: str(row.type) for row in built.rows}
    assert types["blk.0.attn_q.weight"] == "Q3_K" and types["token_embd.weight"] == "Q6_K"
    assert types["blk.0.attn_v.weight"] == "Q5_K" and types["blk.2.ffn_down.weight"] == "Q4_K"


def test_another_type_than_that_of_the_checkpoint_rounds_again(checkpoint: Path) -> None:
    notes = " ".join(plan_gguf(checkpoint, "q8_0").notes)
    assert "quantized matrices are rounded again, as asked; type auto would keep them" in notes


def test_the_plan_counts_the_blocks(source: Path, checkpoint: Path) -> None:
    plan = plan_quantization(source, load_recipe("gguf-q4_k_m"))
    sizes = {t.name: t.bytes for t in plan.tensors}
    opened = open_checkpoint(checkpoint)
    assert {name: opened.stored_bytes(name) for name in opened.names()} == sizes


def test_inspection_counts_the_blocks(checkpoint: Path, artifact: Path) -> None:
    opened = open_checkpoint(checkpoint)
    for name in opened.names():
        scheme, shape = opened.scheme(name), opened.shape(name)
        assert stored_bytes(scheme, shape, "huggingface") == opened.stored_bytes(name), name
    sizes = {t.name: t.n_bytes for t in gguf.GGUFReader(artifact).tensors}
    weights = open_model(artifact).weights
    for name in weights.names():
        size = stored_bytes(weights.scheme(name), weights.shape(name), "gguf")
        assert size == sizes[str(gguf_name(name))], name


def test_shipped_recipes_name_a_mix() -> None:
    mixes = {n: load_recipe(n).scheme.ggml_type for n in recipe_names() if n.startswith("gguf-")}
    assert {name: f"gguf-{str(mix).lower()}" for name, mix in mixes.items()} == {
        name: name for name in mixes
    }
    assert len(mixes) == 3


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("scheme.ggml_type=Q4_K_Z",), "'Q4_K_Z' is not known"),
        (("scheme.ggml_type=null",), "needs scheme.ggml_type"),
        (("scheme.activations=int8",), "cannot say that inputs are rounded"),
        (("format=gptq",), "only GGUF files hold blocks"),
        (("format=compressed-tensors",), "cannot hold it as Q4_K"),
        (("scheme.type=int", "scheme.ggml_type=null"), "holds ggml's blocks alone"),
    ],
)
def test_words_that_do_not_go_together(
    source: Path, overrides: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(RecipeError, match=problem):
        plan_quantization(source, load_recipe("gguf-q4_k_m", overrides))
