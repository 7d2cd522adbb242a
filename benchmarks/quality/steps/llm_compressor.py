"""llm-compressor on given tokens: OUT MODEL CALIBRATION.npy METHOD. Writes OUT/checkpoint.

Methods: gptq and rtn (int4, symmetric, groups of 64), fp8 (FP8_DYNAMIC), w8a8 (SmoothQuant 0.8,
then GPTQ; int8 channel weights, activations per token). The head stays as it is.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.smoothquant import SmoothQuantModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

INT4 = {
    "num_bits": 4,
    "type": "int",
    "symmetric": True,
    "strategy": "group",
    "group_size": 64,
}
INT4_GROUPS = {"group_0": {"targets": ["Linear"], "weights": INT4}}
HEAD = ["lm_head"]


def modifiers(method: str) -> list[Any]:
    if method == "gptq":
        return [GPTQModifier(config_groups=INT4_GROUPS, ignore=HEAD)]
    if method == "rtn":
        return [QuantizationModifier(config_groups=INT4_GROUPS, ignore=HEAD)]
    if method == "fp8":
        return [QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=HEAD)]
    return [
        SmoothQuantModifier(smoothing_strength=0.8),
        GPTQModifier(targets="Linear", scheme="W8A8", ignore=HEAD),
    ]


def calibration_arguments(path: Path) -> dict[str, Any]:
    rows = np.load(path)
    columns = {"input_ids": rows.tolist(), "attention_mask": np.ones_like(rows).tolist()}
    return {
        "dataset": Dataset.from_dict(columns),
        "max_seq_length": rows.shape[1],
        "num_calibration_samples": len(rows),
        "shuffle_calibration_samples": False,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("method", choices=("gptq", "rtn", "fp8", "w8a8"))
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    data = {} if args.method in ("rtn", "fp8") else calibration_arguments(args.calibration)
    oneshot(model=model, recipe=modifiers(args.method), **data)
    model.save_pretrained(args.out / "checkpoint", save_compressed=True)
    AutoTokenizer.from_pretrained(args.model).save_pretrained(args.out / "checkpoint")


if __name__ == "__main__":
    main()
