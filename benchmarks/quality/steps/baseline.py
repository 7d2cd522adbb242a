"""The float model's predictions, kept as hidden states: OUT MODEL SCORED.npy."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

HEAD_ERROR = 1e-3
"""Largest difference of logits between the model and hidden states times head, in float32."""


@torch.no_grad()
def last_hidden(model: Any, window: torch.Tensor) -> torch.Tensor:
    """Float32 [positions, hidden] of one window, its last token left out."""
    hidden: torch.Tensor = model.base_model(window[None]).last_hidden_state[0, :-1]
    return hidden


@torch.no_grad()
def check_head(model: Any, window: torch.Tensor, hidden: torch.Tensor) -> None:
    """Raises ValueError for a model that does more to its hidden states than one product."""
    head = model.get_output_embeddings().weight
    logits = model(window[None]).logits[0, :-1]
    if float((logits - hidden @ head.T).abs().max()) > HEAD_ERROR:
        raise ValueError("this model's logits are not its hidden states times its head")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("scored", type=Path)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    windows = torch.from_numpy(np.load(args.scored))
    hidden = [last_hidden(model, window) for window in windows]
    check_head(model, windows[0], hidden[0])
    np.save(args.out / "hidden.npy", torch.stack(hidden).numpy())
    np.save(args.out / "head.npy", model.get_output_embeddings().weight.detach().numpy())


if __name__ == "__main__":
    main()
