"""Scores a Hugging Face directory by transformers: OUT MODEL BASELINE SCORED.npy [ARITHMETIC].

In float32, unless it is to be seen what bfloat16 does by itself.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.quality.scores import load_baseline, score_window

SAME_ROUNDING = 1e-4
"""Share of the output that two orders of summing may differ by; rounding changes 100 times it."""


def rounds_inputs(module: Any) -> bool:
    scheme = getattr(module, "quantization_scheme", None)
    return scheme is not None and scheme.input_activations is not None


def round_by_hand(x: torch.Tensor, rule: Any) -> torch.Tensor | None:
    """Symmetric with one scale per token, which compressed-tensors takes from the whole range of
    codes; None for other rules."""
    if rule.strategy != "token" or not rule.symmetric or rule.num_bits != 8:
        return None
    largest = x.abs().amax(-1, keepdim=True)
    if rule.type == "float":
        scale = largest / torch.finfo(torch.float8_e4m3fn).max
        return (x / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale
    scale = largest / 127.5
    return (x / scale).round().clamp(-128, 127) * scale


@torch.no_grad()
def check_activations(model: Any) -> None:
    """Raises ValueError when a linear that should round its inputs does not, or does otherwise.

    To be called after a first forward, which is when compressed weights are unpacked.
    """
    module = next((m for m in model.modules() if rounds_inputs(m)), None)
    if module is None:
        return
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, module.weight.shape[1], generator=generator)
    x *= torch.exp(torch.randn(module.weight.shape[1], generator=generator))
    found, plain = module(x), torch.nn.functional.linear(x, module.weight, module.bias)
    by_hand = round_by_hand(x, module.quantization_scheme.input_activations)
    if float((found - plain).norm() / plain.norm()) < SAME_ROUNDING:
        raise ValueError("transformers ignored the checkpoint's rounding of activations")
    if by_hand is not None:
        expected = torch.nn.functional.linear(by_hand, module.weight, module.bias)
        if float((found - expected).norm() / plain.norm()) > SAME_ROUNDING:
            raise ValueError("transformers rounds activations otherwise than by hand")
    print("activations are rounded", "as by hand" if by_hand is not None else "")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("baseline", type=Path)
    parser.add_argument("scored", type=Path)
    parser.add_argument("arithmetic", nargs="?", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.arithmetic).eval()
    baseline, windows = load_baseline(args.baseline), np.load(args.scored)
    scores = []
    for number, window in enumerate(windows):
        logits = model(torch.from_numpy(window)[None]).logits[0, :-1].float().numpy()
        if number == 0:
            check_activations(model)
        scores.append(score_window(logits, baseline.logits(number), window[1:]))
    np.save(args.out / "scores.npy", np.stack(scores))


if __name__ == "__main__":
    main()
