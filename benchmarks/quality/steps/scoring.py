"""What the readers of served models have in common: OUT MODEL BASELINE SCORED.npy THREADS."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.quality.scores import Float32, load_baseline, score_window

Logits = Callable[[npt.NDArray[np.int64]], Float32]
"""Of a window's tokens but its last: float32 [tokens - 1, vocab], up to a number in each row."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("baseline", type=Path)
    parser.add_argument("scored", type=Path)
    parser.add_argument("threads", type=int)
    return parser.parse_args()


def write_scores(args: argparse.Namespace, logits: Logits) -> None:
    """OUT/scores.npy, float64 [windows, 3, positions]."""
    baseline, windows = load_baseline(args.baseline), np.load(args.scored)
    scores = [
        score_window(logits(window), baseline.logits(number), window[1:])
        for number, window in enumerate(windows)
    ]
    np.save(args.out / "scores.npy", np.stack(scores))
