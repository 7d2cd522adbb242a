"""Evaluation of what lies on disk: opens models, checks that they speak of the same tokens."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.jsonable import to_jsonable
from coldpress.loading import (
    AUTO,
    EXACT_MACHINE,
    Machine,
    OnNote,
    default_name,
    open_artifact,
    open_executor,
    payload_bytes,
)
from quant.format.errors import InputError

if TYPE_CHECKING:
    from coldpress.baseline_cache import BaselineCache
    from compile.model import Model
    from runtime.evaluation.baseline import Baseline
    from runtime.evaluation.protocol import Protocol, ProtocolName
    from runtime.text.tokenizer import Tokenizer

Figures = dict[str, Any]
"""The JSON of `coldpress eval`."""


def evaluate_files(
    artifact: Path,
    text: str,
    *,
    baseline: Path | None = None,
    protocol: "ProtocolName" = "paper",
    window: int | None = None,
    max_tokens: int | None = None,
    cache: "BaselineCache | None" = None,
    machine: Machine = EXACT_MACHINE,
    name: str | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
    on_note: OnNote | None = None,
) -> Figures:
    """Perplexity of `artifact` on `text` and, with a baseline, the distance to it.

    window: tokens; that of the protocol by default, or the shortest context where that is less.
    cache: where the baseline's predictions are kept, and read when they are there already.
    name: what the artifact is called in the figures. Raises InputError when the two do not share a
    tokenizer, or the text is too short.
    """
    from runtime.evaluate import evaluate

    model, tokenizer = open_artifact(artifact, on_note)
    token_ids = tokenizer.encode(text)[:max_tokens]
    other = None
    if baseline is not None:
        other, other_tokenizer = open_artifact(baseline, on_note)
        if other_tokenizer.encode(text)[:max_tokens] != token_ids:
            raise InputError(
                f"{artifact} and {baseline} split the text into different tokens; "
                "compare models that share a tokenizer"
            )
    chosen = _protocol(protocol, window, tokenizer, token_ids, [model, other])
    with ExitStack() as stack:
        executor = open_executor(model, machine, tokens=chosen.window)
        stack.callback(executor.close)
        reference = None
        if other is not None:
            opened = _baseline(other, chosen, token_ids, cache, machine)
            reference = stack.enter_context(opened)
        measured = evaluate(
            executor, token_ids, baseline=reference, protocol=chosen, on_progress=on_progress
        )
    figures: Figures = {"model": default_name(artifact) if name is None else name}
    figures["baseline"] = None if baseline is None else default_name(baseline)
    figures["text_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    figures |= to_jsonable(measured)
    figures["bytes"], figures["bits_per_weight"] = sizes(artifact, model)
    return figures


def _protocol(
    name: "ProtocolName",
    window: int | None,
    tokenizer: "Tokenizer",
    token_ids: Sequence[int],
    models: Sequence["Model | None"],
) -> "Protocol":
    from runtime.evaluation.protocol import WINDOW_TOKENS, Protocol

    if window is None:
        contexts = [model.program.sizes.max_positions for model in models if model is not None]
        window = min(WINDOW_TOKENS[name], *contexts)
    begins = bool(token_ids) and token_ids[0] == tokenizer.bos_id
    return Protocol(name, window, tokenizer.bos_id if begins else None)


@contextmanager
def _baseline(
    model: "Model",
    protocol: "Protocol",
    token_ids: Sequence[int],
    cache: "BaselineCache | None",
    machine: Machine,
) -> "Iterator[Baseline]":
    """The baseline as it was kept, or a model that runs beside the other, kept if there is room."""
    from runtime.evaluation.baseline import LiveBaseline
    from runtime.loading import resolve_backend

    key = None
    if cache is not None:
        key = cache.key(model.path, token_ids, protocol, resolve_backend(model, machine.backend))
        kept = cache.read(key)
        if kept is not None:
            yield kept
            return
    exactly = replace(machine, exact=True, kv_cache_type=AUTO)
    executor = open_executor(model, exactly, tokens=protocol.window)
    try:
        live = LiveBaseline(executor, protocol)
        if cache is None or key is None:
            yield live
        else:
            with cache.keep(key, live) as keeping:
                yield keeping
    finally:
        executor.close()


def sizes(path: Path, model: "Model | None" = None) -> tuple[int, float]:
    """Bytes of the files that hold the weights, and bits per weight with all that is in them.

    A tied table is one table; the GGUF header with its tokenizer counts, as it does on a disk.
    """
    from compile.open_model import open_model

    model = open_model(path) if model is None else model
    size = payload_bytes(path)
    return size, 8 * size / sum(prod(shape) for shape in model.program.weights().values())
