"""Checkpoints of every scheme as transformers and compressed-tensors run them, and as we do."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import torch as safetensors_torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from compile.model import Model
from compile.open_model import open_model
from compile.program import Linear, Logits
from compile.to_gguf.build import build_gguf
from compile.verify import check_logits, verify
from quant.format.compressed_tensors import encode_weight, quantization_config
from quant.format.kv_cache import KvCacheScheme, KvScales, encode_kv_scales
from quant.format.scheme import ActivationScheme
from quant.format.tensor import QuantizedTensor
from runtime.executors.torch import TorchExecutor
from tests.runtime.executors.test_rounded_models import (
    CASES,
    TOKENS,
    UNIT,
    alone,
    native,
    rounding_weight,
    steps_of_inputs,
)
from tests.tiny import tiny_config, tiny_tensors, write_tokenizer

SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate": 256, "layers": 1, "dtype": "bfloat16"}
"""Groups and blocks of 128 must divide every matrix."""
WRITABLE = {name: case for name, case in CASES.items() if not case.get("scattered")}


def write_checkpoint(
    directory: Path, case: dict[str, Any], kv_cache: KvCacheScheme | None = None
) -> Path:
    """A llama whose linears have the case's scheme, with float32 scales where it leaves them open:
    in 16 bits, compressed-tensors would round every product of a code and a scale to 16 bits."""
    config = tiny_config("llama", **SIZES)
    stored: dict[str, npt.NDArray[Any]] = {}
    schemes = {}
    for index, (name, values) in enumerate(tiny_tensors(config).items()):
        module = name.removesuffix(".weight")
        if not name.endswith("_proj.weight"):
            stored[name] = values
            continue
        weight = rounding_weight(values.shape, case, seed=index)
        if weight.scale.dtype.itemsize == 2:
            weight = replace(weight, scale=weight.scale.astype(np.float32))
        stored |= encode_weight(module, weight)
        schemes[module] = weight.scheme
    if kv_cache is not None:
        stored |= encode_kv_scales("model.layers.0.self_attn", KvScales(0.01, 0.02))
    config["quantization_config"] = quantization_config(schemes, kv_cache)
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(stored, directory / "model.safetensors", {"format": "pt"})
    return directory


def by_transformers(model: Model, in_bfloat16: bool) -> npt.NDArray[np.float32]:
    """Logits of TOKENS, each a sequence of its own.

    in_bfloat16: compressed-tensors unpacks 4-bit floats and MX to bfloat16 alone. What it unpacks
    must be our weights, rounded; the product is then made with the unrounded ones in float32.
    """
    tokens = torch.from_numpy(TOKENS.astype(np.int64))[:, None]
    dtype = "bfloat16" if in_bfloat16 else "float32"
    reference = AutoModelForCausalLM.from_pretrained(model.path, dtype=dtype)
    with torch.inference_mode():
        logits = reference(tokens).logits  # the first pass unpacks the weights
        if in_bfloat16:
            use_exact_weights(torch.nn.Module.float(reference), model)
            logits = reference(tokens).logits
    return np.asarray(logits[:, 0].numpy())


def use_exact_weights(reference: torch.nn.Module, model: Model) -> None:
    for name, parameter in reference.named_parameters():
        weight = model.weights.load(name)
        if isinstance(weight, QuantizedTensor):
            exact = torch.from_numpy(weight.dequantize())
            assert torch.equal(exact.bfloat16().float(), parameter)
            parameter.copy_(exact)


@pytest.mark.filterwarnings("ignore")  # those of transformers and compressed-tensors
@pytest.mark.parametrize("case", WRITABLE)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    """Sums of different order move an input across the middle of two levels now and then, as
    `test_whole_models_follow_the_oracle` says; most tokens agree to the last bits."""
    model = open_model(write_checkpoint(tmp_path, WRITABLE[case]))
    expected = by_transformers(model, in_bfloat16=case.startswith(("nv", "mx")))
    roundings = sum(op.in_features for op in model.program.ops if isinstance(op, Linear | Logits))
    tight = roundings * UNIT * np.abs(expected).max()
    executors = (TorchExecutor(model, num_pages=50, page_size=8), native(model))
    for executor in executors:
        difference = np.abs(executor.step(alone(TOKENS)) - expected).max(1)
        assert np.median(difference) <= tight
        assert difference.max() <= steps_of_inputs(WRITABLE[case])


def test_a_stored_input_scale_is_one_of_the_numbers_that_must_be_equal(tmp_path: Path) -> None:
    ours = write_checkpoint(tmp_path / "ours", CASES["fp8-static"])
    theirs = write_checkpoint(tmp_path / "theirs", CASES["fp8-static"])
    assert verify(ours, theirs).passed
    tensors = safetensors_torch.load_file(theirs / "model.safetensors")
    module = "model.layers.0.mlp.down_proj"
    tensors[f"{module}.input_scale"] *= 2
    safetensors_torch.save_file(tensors, theirs / "model.safetensors", {"format": "pt"})
    report = verify(ours, theirs)
    assert report.failures == [f"tensor {module}.weight holds other numbers"]
    (found,) = [tensor for tensor in report.tensors if tensor.state == "different"]
    (first,) = found.first
    assert (first.what, first.reference) == ("input scale", 2 * first.stored)


def test_a_container_without_rounded_inputs_holds_the_same_weights_and_says_so(
    tmp_path: Path,
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", CASES["w4a8"])
    write_tokenizer(checkpoint)
    built = build_gguf(checkpoint, tmp_path / "model.gguf")
    assert any("int8-dynamic-token" in note for note in built.notes)
    report = verify(tmp_path / "model.gguf", checkpoint, native_logits)
    assert report.passed and report.counts["equal"] == len(report.tensors)
    assert any("those of 7 linears to int8-dynamic-token" in note for note in report.notes)
    assert report.logits is not None and report.logits.bound is not None
    assert report.logits.max_difference < 1e-5, "compared are the same weights, unrounded inputs"


def native_logits(model: Model, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    return np.array(native(model).step(alone(np.array(tokens, np.int32))))


def test_scales_of_a_kv_cache_are_named_where_they_are_not_used(tmp_path: Path) -> None:
    plain = open_model(write_checkpoint(tmp_path / "plain", CASES["fp8-dynamic"]))
    assert plain.notes == ()
    scheme = KvCacheScheme("e4m3")
    model = open_model(write_checkpoint(tmp_path / "kv", CASES["fp8-dynamic"], scheme))
    (note,) = model.notes
    assert "KV cache (e4m3)" in note and "--kv-cache-type" in note
    batch = alone(TOKENS)
    np.testing.assert_array_equal(native(model).step(batch), native(plain).step(batch))


@pytest.mark.parametrize("activation", [None, CASES["w4a8"]["activation"]])
def test_rounded_weights_have_no_bound_where_inputs_are_rounded_too(
    activation: ActivationScheme | None, tmp_path: Path
) -> None:
    """A difference of the last bits moves an input by a whole step."""
    model = open_model(write_checkpoint(tmp_path, CASES["w4a8"] | {"activation": activation}))
    check = check_logits(model, model, native_logits, {"equal", "rounded"})
    assert check.passed and (check.bound is None) == (activation is not None)
    exact = check_logits(model, model, native_logits, {"equal"})
    assert exact.bound is not None and exact.max_difference == 0
