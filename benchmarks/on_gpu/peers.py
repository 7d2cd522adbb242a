"""The same shapes in transformers, and torch's own int4 and FP8 products, in the same run."""

import time
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.on_gpu.limits import seconds_of
from benchmarks.on_gpu.made_up import SHAPES, config_of
from benchmarks.on_gpu.models import CONTEXT, DECODE_STEPS, PROMPT
from benchmarks.on_gpu.table import Cell, Row


def peer_cells(shape: str) -> Iterator[Cell]:
    """torch's products; transformers with bfloat16, a static cache and torch.compile."""
    sizes = SHAPES[shape]
    columns, rows = sizes["hidden_size"], sizes["intermediate_size"]
    name = f"torch int4, 1 row of {columns} -> {rows}"
    yield name, partial(_torch_int4, name, columns, rows)
    if torch.cuda.get_device_capability() >= (8, 9):
        name = f"torch FP8, {PROMPT} rows of {columns} -> {rows}"
        yield name, partial(_torch_fp8, name, columns, rows)
    yield f"{shape} transformers", partial(_transformers, shape)


def _torch_int4(name: str, columns: int, rows: int) -> list[Row]:
    x = torch.randn(1, columns, device="cuda", dtype=torch.bfloat16)
    bytes_ = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device="cuda")
    packed = torch.ops.aten._convert_weight_to_int4pack(bytes_, 8)
    scales = torch.ones(columns // 128, rows, 2, device="cuda", dtype=torch.bfloat16)
    seconds = seconds_of(lambda: torch.ops.aten._weight_int4pack_mm(x, packed, 128, scales))
    return [Row(name, 1e6 * seconds, "us")]


def _torch_fp8(name: str, columns: int, rows: int) -> list[Row]:
    many = torch.randn(PROMPT, columns, device="cuda").to(torch.float8_e4m3fn)
    weight = torch.randn(rows, columns, device="cuda").to(torch.float8_e4m3fn)
    one = torch.ones(PROMPT, 1, device="cuda")
    each = torch.ones(1, rows, device="cuda")
    seconds = seconds_of(
        lambda: torch._scaled_mm(
            many, weight.T, scale_a=one, scale_b=each, out_dtype=torch.bfloat16
        )
    )
    return [Row(name, 1e6 * seconds, "us")]


def _transformers(shape: str) -> list[Row]:
    from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

    config = LlamaConfig(**{k: v for k, v in config_of(SHAPES[shape]).items() if k != "model_type"})
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    cache = StaticCache(config=config, max_cache_len=PROMPT + DECODE_STEPS)
    prompt = torch.randint(5, 1000, (1, PROMPT), device="cuda")
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)

    def step(tokens: torch.Tensor, first: int, forward: object) -> None:
        places = torch.arange(first, first + tokens.shape[1], device="cuda")
        with torch.inference_mode():
            forward(  # type: ignore[operator]
                tokens, cache_position=places, past_key_values=cache, logits_to_keep=1
            )

    times = []
    for _ in range(4):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        step(prompt, 0, model)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    prefill = PROMPT / sorted(times)[1]
    token = prompt[:, :1].clone()
    for position in range(CONTEXT - 4, CONTEXT):
        step(token, position, compiled)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for position in range(CONTEXT, CONTEXT + DECODE_STEPS):
        step(token, position, compiled)
    torch.cuda.synchronize()
    decode = DECODE_STEPS / (time.perf_counter() - begin)
    return [
        Row(
            f"{shape} transformers bfloat16, static cache, compiled: decode of 1",
            decode,
            "tokens/s",
        ),
        Row(f"{shape} transformers bfloat16: prompt of {PROMPT}", prefill, "tokens/s"),
    ]
