"""Perplexity and KLD of quantized checkpoints against their float parent, by transformers itself.

An independent referee: nothing of coldpress computes these numbers, so its checkpoints and those of
other tools stand side by side.

    python benchmarks/quality.py --baseline FLOAT_DIR --text FILE [--tokens N] NAME=DIR ...

The text's second half is scored (calibrate on the first): non-overlapping windows of 1024 tokens,
every position but the first, float32 log-probabilities, sums in float64.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW_TOKENS = 1024


@dataclass
class Score:
    """Sums over the scored positions of one checkpoint."""

    name: str
    negative_log_likelihood: float = 0.0
    kld: float = 0.0
    kld_squares: float = 0.0
    same_top: int = 0
    positions: int = 0

    def add(self, log_probs: torch.Tensor, base: torch.Tensor, targets: torch.Tensor) -> None:
        """Score one window: both float32 [positions, vocab], targets [positions]."""
        kld = (base.exp() * (base - log_probs)).sum(-1).double()
        self.negative_log_likelihood -= float(log_probs.gather(1, targets[:, None]).double().sum())
        self.kld += float(kld.sum())
        self.kld_squares += float((kld * kld).sum())
        self.same_top += int((log_probs.argmax(-1) == base.argmax(-1)).sum())
        self.positions += len(targets)

    def summary(self) -> dict[str, Any]:
        n = self.positions
        mean = self.kld / n
        variance = max(self.kld_squares / n - mean * mean, 0.0)
        return {
            "name": self.name,
            "perplexity": math.exp(self.negative_log_likelihood / n),
            "kld": {"mean": mean, "se": math.sqrt(variance / n)},
            "top1": self.same_top / n,
            "tokens": n,
        }


def load(path: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.eval()


def second_half_windows(path: Path, tokenizer: Any, tokens: int) -> list[torch.Tensor]:
    text = path.read_text(encoding="utf-8")
    ids = tokenizer(text[len(text) // 2 :], add_special_tokens=False)["input_ids"][:tokens]
    whole = len(ids) // WINDOW_TOKENS
    return [torch.tensor(ids[i * WINDOW_TOKENS : (i + 1) * WINDOW_TOKENS]) for i in range(whole)]


@torch.no_grad()
def log_probs(model: Any, window: torch.Tensor) -> torch.Tensor:
    logits = model(window[None]).logits[0, :-1]
    return torch.log_softmax(logits, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--baseline", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("candidates", nargs="+", metavar="NAME=DIR")
    args = parser.parse_args()

    baseline = load(args.baseline)
    windows = second_half_windows(
        args.text, AutoTokenizer.from_pretrained(args.baseline), args.tokens
    )
    models = {n: load(Path(d)) for n, d in (c.split("=", 1) for c in args.candidates)}
    scores = {name: Score(name) for name in ["baseline", *models]}
    start = time.monotonic()
    for window in windows:
        base, targets = log_probs(baseline, window), window[1:]
        scores["baseline"].add(base, base, targets)
        for name, model in models.items():
            scores[name].add(log_probs(model, window), base, targets)
    report = [asdict(s) | s.summary() for s in scores.values()]
    print(json.dumps({"seconds": time.monotonic() - start, "scores": report}, indent=1))


if __name__ == "__main__":
    main()
