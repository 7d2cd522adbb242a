"""Evaluation of what lies on disk: opens models, checks that they speak of the same tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from coldpress.jsonable import to_jsonable
from coldpress.loading import open_artifact, open_executor, payload_bytes
from quant.format.errors import InputError

Figures = dict[str, Any]
"""The JSON of `coldpress eval`."""


def evaluate_files(
    artifact: Path,
    text: str,
    *,
    baseline: Path | None = None,
    window: int = 1024,
    max_tokens: int | None = None,
    backend: str = "cpu",
    threads: int | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Figures:
    """Perplexity of `artifact` on `text` and, with a baseline, the distance to it.

    Raises InputError when the two do not share a tokenizer, or the text is too short.
    """
    from runtime.evaluate import evaluate

    model, tokenizer = open_artifact(artifact)
    token_ids = tokenizer.encode(text)[:max_tokens]
    other = None
    if baseline is not None:
        other, other_tokenizer = open_artifact(baseline)
        if other_tokenizer.encode(text)[:max_tokens] != token_ids:
            raise InputError(
                f"{artifact} and {baseline} split the text into different tokens; "
                "compare models that share a tokenizer"
            )
    tokens = window if window else 1024
    executor = open_executor(model, backend=backend, tokens=tokens, threads=threads)
    reference = None
    try:
        if other is not None:
            reference = open_executor(other, backend=backend, tokens=tokens, threads=threads)
        measured = evaluate(
            executor, token_ids, baseline=reference, window=window, on_progress=on_progress
        )
    finally:
        executor.close()
        if reference is not None:
            reference.close()
    size = payload_bytes(artifact)
    figures: Figures = to_jsonable(measured)
    figures["bits_per_weight"] = 8 * size / parameter_count(model.program.weights())
    figures["bytes"] = size
    return figures


def parameter_count(shapes: dict[str, tuple[int, ...]]) -> int:
    """How many numbers the model holds, a tied table counted once."""
    total = 0
    for shape in shapes.values():
        product = 1
        for size in shape:
            product *= size
        total += product
    return total
