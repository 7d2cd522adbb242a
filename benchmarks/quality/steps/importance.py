"""What llama.cpp calls an importance matrix: OUT MODEL CALIBRATION.npy.

The mean square of every input channel of every linear in the float model, under GGUF's names. The
head is left out, as llama.cpp's own tool leaves it out.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM

GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@torch.no_grad()
def mean_squares(model: Any, samples: torch.Tensor) -> dict[str, npt.NDArray[np.float32]]:
    """Float32 [in] by GGUF name, over all tokens of int64 [samples, tokens]."""
    sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))

    def adder(name: str) -> Callable[[Any, Any], None]:
        def add(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            sums[name] = sums[name] + inputs[0].square().double().flatten(0, -2).sum(0)

        return add

    for number, layer in enumerate(model.model.layers):
        for ours, theirs in GGUF_NAMES.items():
            name = f"blk.{number}.{theirs}.weight"
            layer.get_submodule(ours).register_forward_pre_hook(adder(name))
    for sample in samples:
        model.base_model(sample[None])
    return {name: (total / samples.numel()).float().numpy() for name, total in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    squares = mean_squares(model, torch.from_numpy(np.load(args.calibration)))
    np.savez(args.out / "importance.npz", **squares)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
