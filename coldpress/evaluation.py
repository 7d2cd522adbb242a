"""Evaluation of what lies on disk: opens models, checks that they speak of the same tokens."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.jsonable import to_jsonable
from coldpress.loading import open_artifact, open_executor, payload_bytes
from quant.format.errors import InputError

if TYPE_CHECKING:
    from compile.model import Model

Figures = dict[str, Any]
"""The JSON of `coldpress eval`."""


def evaluate_files(
    artifact: Path,
    text: str,
    *,
    baseline: Path | None = None,
    window: int | None = None,
    max_tokens: int | None = None,
    backend: str = "cpu",
    threads: int | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Figures:
    """Perplexity of `artifact` on `text` and, with a baseline, the distance to it.

    window: tokens; 1024 by default, or the shortest context where that is less. Raises InputError
    when the two do not share a tokenizer, or the text is too short.
    """
    from runtime.evaluate import WINDOW_TOKENS, evaluate

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
    if window is None:
        opened = [model] if other is None else [model, other]
        window = min(WINDOW_TOKENS, *(one.program.sizes.max_positions for one in opened))
    executor = open_executor(model, backend=backend, tokens=window, threads=threads)
    reference = None
    try:
        if other is not None:
            reference = open_executor(other, backend=backend, tokens=window, threads=threads)
        measured = evaluate(
            executor, token_ids, baseline=reference, window=window, on_progress=on_progress
        )
    finally:
        executor.close()
        if reference is not None:
            reference.close()
    figures: Figures = to_jsonable(measured)
    figures["bytes"], figures["bits_per_weight"] = sizes(artifact, model)
    return figures


def sizes(path: Path, model: "Model | None" = None) -> tuple[int, float]:
    """Bytes of the files that hold the weights, and bits per weight with all that is in them.

    A tied table is one table; the GGUF header with its tokenizer counts, as it does on a disk.
    """
    from compile.open_model import open_model

    model = open_model(path) if model is None else model
    size = payload_bytes(path)
    return size, 8 * size / sum(prod(shape) for shape in model.program.weights().values())
