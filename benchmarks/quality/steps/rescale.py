"""The same function with awkward channel scales: OUT MODEL SEED.

Where one weight's output channel is only multiplied by another's input channel, a factor can be
moved between the two. Random factors take every weight off whatever grid it sat on and give the
channels different importance; the function stays. Llama's module names: q/k/v/o, gate/up/down, and
a norm before each.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LOG_RANGE = 0.35
"""Factors lie between exp(-0.35) and exp(0.35), evenly in their logarithm."""

Factors = Callable[[int], torch.Tensor]


@torch.no_grad()
def rescale(model: Any, seed: int) -> None:
    """Move factors within every layer of a float model, in place. Same seed, same factors."""
    generator = torch.Generator().manual_seed(seed)

    def factors(count: int) -> torch.Tensor:
        return torch.exp(LOG_RANGE * (2 * torch.rand(count, generator=generator) - 1))

    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        _from_norm(
            layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj], factors
        )
        _from_norm(layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj], factors)
        _between(mlp.up_proj, mlp.down_proj, 1, 1, factors)
        heads = model.config.num_attention_heads
        kv_heads = model.config.num_key_value_heads
        _between(attention.v_proj, attention.o_proj, kv_heads, heads // kv_heads, factors)


def _from_norm(norm: Any, linears: list[Any], factors: Factors) -> None:
    s = factors(norm.weight.shape[0])
    norm.weight.div_(s)
    for linear in linears:
        linear.weight.mul_(s)


def _between(first: Any, second: Any, heads: int, repeats: int, factors: Factors) -> None:
    """Out of `second`, into `first`, each of whose heads feeds `repeats` of the second's."""
    s = factors(first.weight.shape[0])
    first.weight.mul_(s[:, None])
    if first.bias is not None:
        first.bias.mul_(s)
    second.weight.div_(s.view(heads, -1).repeat_interleave(repeats, dim=0).reshape(-1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("seed", type=int)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    rescale(model, args.seed)
    model.to(torch.bfloat16).save_pretrained(args.out)
    AutoTokenizer.from_pretrained(args.model).save_pretrained(args.out)


if __name__ == "__main__":
    main()
