"""The recipe `smallest`: what becomes of it, and who loads it."""

from pathlib import Path

import pytest
import torch

from quant.calibration import FileSource
from quant.format.checkpoint import open_checkpoint
from quant.format.tensor import QuantizedTensor
from quant.preflight import plan_quantization
from quant.recipe import load_recipe
from quant.run import quantize_checkpoint
from quant.tasks import FUSED
from tests.tiny import TEXT, tiny_checkpoint

ROUTERS = (".gate.weight", "shared_expert_gate.weight")
SMALL = ("calibration.samples=6", "calibration.tokens=24")


@pytest.mark.parametrize("family", ["llama", "qwen2_moe", "mixtral"])
@pytest.mark.parametrize("tied", [True, False])
def test_nothing_but_vectors_and_routers_stays_in_16_bits(
    tmp_path: Path, family: str, tied: bool
) -> None:
    """All patterns match something in every family, with a head of its own or without."""
    model = tiny_checkpoint(tmp_path / "model", family, tied=tied)
    plan = plan_quantization(model, load_recipe("smallest"))
    low = {}
    for tensor in plan.tensors:
        quantized = tensor.scheme.startswith(("int3-sym", "int4-sym", "int5-sym"))
        assert quantized == (len(tensor.shape) == 2 and not tensor.name.endswith(ROUTERS)), tensor
        low[tensor.name.removesuffix(".weight")] = tensor.scheme[:4]
    assert low["model.layers.0.self_attn.o_proj"] == "int4"
    assert low["model.layers.1.self_attn.o_proj"] == "int3"
    assert low["model.layers.1.self_attn.v_proj"] == "int4"
    for names in FUSED:
        for layer in ("self_attn", "mlp", "block_sparse_moe.experts.3", "mlp.experts.3"):
            stacked = {low.get(f"model.layers.1.{layer}.{name}") for name in names}
            assert len(stacked) == 1, names
    assert low["model.embed_tokens"] == "int5"
    assert tied or low["lm_head"] == "int5"


@pytest.mark.parametrize("tied", [True, False])
def test_without_the_table_transformers_loads_the_very_numbers(tmp_path: Path, tied: bool) -> None:
    transformers = pytest.importorskip("transformers")
    model, text = tiny_checkpoint(tmp_path / "model", tied=tied), tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    sets = [*SMALL, "embeddings=null", *(["lm_head=null"] if tied else [])]
    quantize_checkpoint(model, tmp_path / "out", load_recipe("smallest", sets), FileSource(text))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32
    )
    loaded(torch.tensor([[1, 2, 3]]))
    weights, source, seen = dict(loaded.named_parameters()), open_checkpoint(tmp_path / "out"), 0
    for name in source.names():
        weight = source.load(name)
        if isinstance(weight, QuantizedTensor):
            seen += 1
            assert bool((weights[name] == torch.from_numpy(weight.dequantize())).all()), name
    assert seen == 2 * 7 + (not tied)
