"""Checkpoints on their way to a GPU: what the host holds of them, and scales of their caches."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from compile.open_model import open_model
from quant.format.compressed_tensors import encode_weight, quantization_config
from quant.format.kv_cache import KvCacheScheme
from quant.format.safetensors_writer import ShardedWriter
from quant.format.scheme import IntScheme, PerGroup
from quant.format.tensor import QuantizedTensor
from runtime.engine.batch import StepBatch
from runtime.parallel.part import part_of
from tests.quant.format.random_weights import int_scheme
from tests.quant.format.tiny_quantized import MLP, kv_scales, quantized_llama
from tests.runtime.gpu import DEVICE
from tests.tiny import tiny_config, tiny_model, tiny_weights, write_json

# The device is chosen before kernels are defined.
from runtime.executors.cuda import CudaExecutor, stored_number  # isort: skip

SHARD = 1_500_000


@pytest.mark.parametrize(("layers", "scheme"), [(6, None), (14, IntScheme(4, True, PerGroup(32)))])
def test_the_host_holds_less_than_a_shard(
    tmp_path: Path, layers: int, scheme: IntScheme | None
) -> None:
    """Tensors of the device have no memory here, so what is left is the host's."""
    config = tiny_config("llama", layers=layers, hidden_size=256, intermediate=512)
    linears = {}
    with ShardedWriter(tmp_path, SHARD) as writer:
        for name, weight in tiny_weights(config, scheme=scheme).items():
            if not isinstance(weight, QuantizedTensor):
                writer.add(name, weight)
                continue
            module = name.removesuffix(".weight")
            linears[module] = weight.scheme
            for stored, part in encode_weight(module, weight).items():
                writer.add(stored, part)
    if linears:
        config["quantization_config"] = quantization_config(linears)
    write_json(tmp_path / "config.json", config)
    shards = list(tmp_path.glob("*.safetensors"))
    assert len(shards) >= 3, "a whole model must not pass for a shard"
    model = open_model(tmp_path)
    # The first one brings the modules of torch with it that know tensors without memory.
    CudaExecutor(tiny_model("llama", layers=1), num_pages=2, page_size=16, device="meta")
    tracemalloc.start()
    try:
        executor = CudaExecutor(model, num_pages=2, page_size=16, device="meta")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    held = sum(path.stat().st_size for path in shards)
    assert executor.weight_bytes > held / 2, "all of it has been loaded"
    assert peak < SHARD


@pytest.mark.parametrize("numbers", ["e4m3", "int8"])
@pytest.mark.parametrize("split", [False, True])
def test_scales_of_the_cache_come_from_the_checkpoint(
    tmp_path: Path, numbers: str, split: bool
) -> None:
    """kv_cache_scheme and k_scale, v_scale of compressed-tensors; every rank has them."""
    scheme = KvCacheScheme(numbers)  # type: ignore[arg-type]
    schemes = dict.fromkeys(MLP, int_scheme(4, True, 32))
    quantized_llama(tmp_path / "model", schemes, kv_cache=scheme)
    model = open_model(tmp_path / "model")
    if split:
        model = part_of(model, 1, 2)
    assert stored_number(model.weights) == numbers
    executor = CudaExecutor(
        model, num_pages=3, page_size=16, device=str(DEVICE), dtype="float32",
        sum_ranks=lambda x: x, max_ranks=lambda x: x,
    )  # fmt: skip
    caches = executor._caches
    held = torch.float8_e4m3fn if numbers == "e4m3" else torch.int8
    for layer, cache in enumerate(caches):
        stored = kv_scales(layer)
        assert cache.keys.dtype == cache.values.dtype == held
        assert cache.key_scale is not None and cache.value_scale is not None
        assert (cache.key_scale.item(), cache.value_scale.item()) == (stored.keys, stored.values)
    order = np.arange(5, dtype=np.int32)
    batch = StepBatch(order, order, np.array([0, 5], np.int32), np.array([[2]], np.int32), order)
    assert np.isfinite(executor.step(batch)).all()
