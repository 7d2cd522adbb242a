"""transformers loads tiny checkpoints of every format, and its weights are worth what ours are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from quant.format.checkpoint import open_checkpoint
from quant.format.kv_cache import KvCacheScheme, KvScales
from quant.format.scheme import (
    ActivationScheme,
    CodebookScheme,
    PerBlock,
    PerGroup,
    PerTensor,
    QuantizedScheme,
)
from quant.format.tensor import QuantizedTensor
from tests.quant.format.random_weights import WITH_ACTIVATIONS, assert_same, int_scheme, to_torch
from tests.quant.format.tiny_quantized import ATTENTION, MLP, kv_scales, quantized_llama

FINE_GRAINED = {
    "block": WITH_ACTIVATIONS["fp8-block"],
    "block64": CodebookScheme(
        "e4m3", PerBlock(64, 32), activation=ActivationScheme("e4m3", PerGroup(32))
    ),
    "block-ue8m0": CodebookScheme(
        "e4m3", PerBlock(128, 128), "e8m0", ActivationScheme("e4m3", PerGroup(128))
    ),
    "tensor": CodebookScheme("e4m3", PerTensor(), activation=ActivationScheme("e4m3")),
    "static": WITH_ACTIVATIONS["fp8-static"],
}
MIXED = dict.fromkeys(ATTENTION, WITH_ACTIVATIONS["fp8-dynamic"]) | {
    "gate_proj": int_scheme(4, True, 32),
    "up_proj": int_scheme(4, True, 32),
    "down_proj": WITH_ACTIVATIONS["nvfp4"],
}


def load(directory: Path) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)


def assert_worth_the_same(model: Any, quantized: Mapping[str, QuantizedTensor]) -> None:
    """After a forward pass, with which weights are unpacked; products rounded to bfloat16."""
    import torch

    assert bool(torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all())
    weights = dict(model.named_parameters())
    for name, tensor in quantized.items():
        ours = to_torch(tensor.dequantize()).to(torch.bfloat16)
        assert bool((weights[name] == ours).all()), name


def assert_we_read_it(directory: Path, quantized: Mapping[str, QuantizedTensor]) -> None:
    source = open_checkpoint(directory)
    assert {n for n in source.names() if isinstance(source.load(n), QuantizedTensor)} == {
        *quantized
    }
    for name, tensor in quantized.items():
        loaded = source.load(name)
        assert isinstance(loaded, QuantizedTensor)
        assert_same(loaded, tensor)


@pytest.mark.parametrize("name", [*WITH_ACTIVATIONS, "mixed"])
def test_compressed_tensors(tmp_path: Path, name: str) -> None:
    schemes: dict[str, QuantizedScheme] = dict(MIXED)
    if name != "mixed":
        schemes = dict.fromkeys(ATTENTION + MLP, WITH_ACTIVATIONS[name])
    quantized = quantized_llama(tmp_path / "model", schemes, wide=True)
    assert_we_read_it(tmp_path / "model", quantized)
    assert_worth_the_same(load(tmp_path / "model"), quantized)


@pytest.mark.filterwarnings("ignore:.*FP8 quantized models requires.*")
@pytest.mark.parametrize("name", FINE_GRAINED)
def test_fine_grained_fp8(tmp_path: Path, name: str) -> None:
    schemes = dict.fromkeys(("q_proj", "o_proj", *MLP), FINE_GRAINED[name])
    quantized = quantized_llama(tmp_path / "model", schemes, "fp8", wide=True)
    assert_we_read_it(tmp_path / "model", quantized)
    assert_worth_the_same(load(tmp_path / "model"), quantized)


@pytest.mark.parametrize("numbers", ["e4m3", "int8"])
@pytest.mark.parametrize("linears", [MLP, ()], ids=["mlp", "nothing"])
def test_scales_of_the_kv_cache(
    tmp_path: Path, numbers: Literal["e4m3", "int8"], linears: tuple[str, ...]
) -> None:
    """Also where they are all that is quantized."""
    schemes = dict.fromkeys(linears, int_scheme(4, True, 32))
    kv_cache = KvCacheScheme(numbers)
    quantized = quantized_llama(tmp_path / "model", schemes, kv_cache=kv_cache)
    source = open_checkpoint(tmp_path / "model")
    assert source.kv_cache == kv_cache
    model = load(tmp_path / "model")
    for layer, decoder in enumerate(model.model.layers):
        assert source.kv_scales(layer) == kv_scales(layer)
        attention = decoder.self_attn
        assert KvScales(
            *(float(s.detach()) for s in (attention.k_scale, attention.v_scale))
        ) == kv_scales(layer)
    assert_worth_the_same(model, quantized)
