"""The same shapes in transformers, its linears bfloat16 or torch's own int4 and FP8 products."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.on_gpu.clock import DEVICE
from benchmarks.on_gpu.made_up import config_of
from benchmarks.on_gpu.sizes import SIZES
from benchmarks.on_gpu.table import Cell, Row

CONTEXT, PROMPT, STEPS = SIZES.context, SIZES.prompt, SIZES.steps
GROUP = 128
WARM_UP_STEPS = 4
PREFILLS = 4


class Int4Linear(nn.Module):
    """torch's product of bfloat16 with 4-bit weights in groups of 128."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        rows, columns = linear.weight.shape
        codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device=DEVICE)
        self.packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
        scales = torch.full((columns // GROUP, rows, 2), columns**-0.5 / 8, device=DEVICE)
        self.scales = scales.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out: Tensor = torch.ops.aten._weight_int4pack_mm(flat, self.packed, GROUP, self.scales)
        return out.reshape(*x.shape[:-1], -1)


class Fp8Linear(nn.Module):
    """torch's product of e4m3 on both sides, with a scale per row of either."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self.scale = (weight.abs().amax(1, keepdim=True) / 448).clamp(min=1e-12).T.contiguous()
        self.codes = (weight / self.scale.T).to(torch.float8_e4m3fn)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        scale = (flat.abs().amax(1, keepdim=True).float() / 448).clamp(min=1e-12)
        codes = (flat.float() / scale).to(torch.float8_e4m3fn)
        out = torch._scaled_mm(
            codes, self.codes.T, scale_a=scale, scale_b=self.scale, out_dtype=torch.bfloat16
        )
        return out.reshape(*x.shape[:-1], -1)


LINEARS: dict[str, Callable[[nn.Linear], nn.Module] | None] = {
    "bfloat16": None,
    "int4": Int4Linear,
    "fp8": Fp8Linear,
}


def peer_cells(shape: str, kind: str) -> Iterator[Cell]:
    """A static cache and torch.compile, except for the prompt of bfloat16 and int4."""
    name = f"{shape} transformers {kind}"
    if DEVICE == "cpu" and LINEARS[kind] is not None:
        return
    model = _model(shape, LINEARS[kind])
    if kind != "int4":
        yield f"{name}: prompt", partial(_prefill, f"{name}: prompt of {PROMPT}", model, kind)
    if kind != "fp8":
        yield f"{name}: decode", partial(_decode, f"{name}, compiled: decode of 1", model)


def _model(shape: str, replaced: Callable[[nn.Linear], nn.Module] | None) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    told = {k: v for k, v in config_of(SIZES.shapes[shape]).items() if k != "model_type"}
    config = LlamaConfig(**told)
    with torch.device(DEVICE):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    if replaced is not None:
        for layer in model.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, linear in list(part.named_children()):
                    if isinstance(linear, nn.Linear):
                        setattr(part, name, replaced(linear))
    return model


def _step(forward: Any, tokens: Tensor, cache: Any) -> None:
    """The cache knows how many tokens it has seen."""
    with torch.no_grad():
        forward(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)


def _begun_cache(model: Any, length: int) -> Any:
    """Its memory is made by the first step, which must not be compiled; attention reads all of it,
    however much has been written."""
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=length)
    _step(model, torch.full((1, 4), 7, device=DEVICE), cache)
    return cache


def _prefill(name: str, model: Any, kind: str) -> list[Row]:
    prompt = torch.randint(5, 90, (1, PROMPT), device=DEVICE)
    forward = _compiled(model, "default") if kind == "fp8" else model
    cache = _begun_cache(model, PROMPT)
    times = []
    for _ in range(PREFILLS):
        cache.reset()
        _wait()
        begin = time.perf_counter()
        _step(forward, prompt, cache)
        _wait()
        times.append(time.perf_counter() - begin)
    return [Row(name, PROMPT / sorted(times)[1], "tokens/s")]


def _decode(name: str, model: Any) -> list[Row]:
    cache = _begun_cache(model, CONTEXT + STEPS)
    token = torch.full((1, 1), 7, device=DEVICE)
    forward = _compiled(model, "reduce-overhead")
    for _ in range(WARM_UP_STEPS):
        _step(forward, token, cache)
    _wait()
    begin = time.perf_counter()
    for _ in range(STEPS):
        _step(forward, token, cache)
    _wait()
    return [Row(name, STEPS / (time.perf_counter() - begin), "tokens/s")]


def _compiled(model: Any, mode: str) -> Any:
    """On a processor there may be no compiler, and nothing is timed."""
    if DEVICE == "cpu":
        return torch.compile(model, backend="eager")
    return torch.compile(model, mode=mode, fullgraph=True)


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
