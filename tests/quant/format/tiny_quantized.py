"""A tiny Llama whose linears hold random codes, written in any format of checkpoint."""

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes

from quant.format.containers import CONTAINERS, Format
from quant.format.kv_cache import KvCacheScheme, KvScales, encode_kv_scales
from quant.format.safetensors_writer import ShardedWriter
from quant.format.scheme import FloatScheme, QuantizedScheme, Scheme
from quant.format.tensor import QuantizedTensor
from tests.quant.format.random_weights import random_weight
from tests.tiny import tiny_config, tiny_tensors, write_json

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def quantized_llama(
    directory: Path,
    schemes: Mapping[str, QuantizedScheme],
    format_name: Format = "compressed-tensors",
    kv_cache: KvCacheScheme | None = None,
    *,
    wide: bool = False,
) -> dict[str, QuantizedTensor]:
    """The quantized weights by name; `schemes` by last part of the names of linears.

    wide: whether rows hold whole groups of 128.
    """
    width = 128 if wide else 64
    config = tiny_config("llama", tied=True, hidden_size=width, intermediate=2 * width)
    container = CONTAINERS[format_name]
    quantized: dict[str, QuantizedTensor] = {}
    states: dict[str, Scheme] = {}
    directory.mkdir()
    with ShardedWriter(directory, 100_000) as writer:
        for seed, (name, array) in enumerate(tiny_tensors(config).items()):
            module = name.removesuffix(".weight")
            scheme = schemes.get(module.rpartition(".")[2])
            if module.endswith("_proj"):
                states[module] = scheme or FloatScheme("bfloat16")
            if scheme is None:
                writer.add(name, array)
                continue
            rows, columns = array.shape
            dtype = container.scale_dtype or ml_dtypes.bfloat16
            quantized[name] = random_weight(scheme, rows, columns, seed=seed, scale_dtype=dtype)
            for stored, part in container.encode(module, quantized[name]).items():
                writer.add(stored, part)
        if kv_cache is not None and not kv_cache.dynamic:
            for layer in range(config["num_hidden_layers"]):
                attention = f"model.layers.{layer}.self_attn"
                for stored, part in encode_kv_scales(attention, kv_scales(layer)).items():
                    writer.add(stored, part)
    quantization = container.config(states, 0.01, kv_cache)
    write_json(directory / "config.json", config | {"quantization_config": quantization})
    return quantized


def kv_scales(layer: int) -> KvScales:
    """Those that `quantized_llama` writes; exact in bfloat16."""
    return KvScales(keys=0.125 * (layer + 1), values=0.25 * (layer + 1))
