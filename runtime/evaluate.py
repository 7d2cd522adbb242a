"""How well a model predicts a text, and how far its predictions are from a baseline's.

The protocol of the papers (PPL-A): one tokenization of the whole text, windows that do not overlap,
every position of a window but the first scored, the tail that fills no window dropped.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from quant.format.errors import InputError
from runtime.engine.batch import Executor, StepBatch

WINDOW_TOKENS = 1024
CHUNK_TOKENS = 128
"""Tokens per step: bounds the logits in memory to this many rows per executor."""
ROWS_AT_ONCE = 8
"""Rows of logits in float64 at a time: small enough to stay in a core's cache."""

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens with its standard error."""

    mean: float
    se: float


@dataclass(frozen=True)
class Divergence:
    """KL(baseline || model) per token, in nats."""

    mean: float
    se: float
    p99: float
    max: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured; the last four are None without a baseline.

    `perplexity_se` is the perplexity times the standard error of the mean loss per token.
    """

    perplexity: float
    perplexity_se: float
    tokens: int
    window: int
    kld: Divergence | None = None
    top1: Estimate | None = None
    ppl_ratio: float | None = None
    baseline_perplexity: float | None = None


@dataclass(frozen=True, eq=False)
class _Scores:
    """Per scored token, float64 [tokens]: both losses in nats, the divergence, the agreement."""

    loss: Float64
    baseline_loss: Float64
    divergence: Float64
    agreement: Float64


def evaluate(
    executor: Executor,
    token_ids: Sequence[int] | Int32,
    *,
    baseline: Executor | None = None,
    window: int = WINDOW_TOKENS,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Perplexity of `executor` on `token_ids` and, with a `baseline`, the distance to it.

    Both executors see the same windows in lockstep, so that memory holds one chunk of logits each.
    Raises InputError when the text fills no window or an executor cannot hold one.
    """
    executors = [executor] if baseline is None else [executor, baseline]
    for one in executors:
        _check_room(one, window)
    if baseline is not None and baseline.vocab_size != executor.vocab_size:
        raise InputError(
            f"the baseline predicts {baseline.vocab_size} tokens and the model "
            f"{executor.vocab_size}; compare models that share a tokenizer"
        )
    windows = split_windows(token_ids, window)
    chunks: list[_Scores] = []
    for index, tokens in enumerate(windows):
        chunks.extend(_score_window(executors, tokens))
        if on_progress is not None:
            on_progress(index + 1, len(windows), "windows scored")
    return _summarize(chunks, window, baseline is not None)


def split_windows(token_ids: Sequence[int] | Int32, window: int) -> Int32:
    """int32 [windows, window]: the whole windows of a text; its tail is dropped."""
    tokens = np.asarray(token_ids, dtype=np.int32)
    if window < 2:
        raise InputError(f"a window of {window} token(s) scores nothing; use at least 2")
    count = len(tokens) // window
    if count == 0:
        raise InputError(
            f"the text has {len(tokens)} tokens, fewer than one window of {window}; "
            "give a longer text or a smaller --window"
        )
    return tokens[: count * window].reshape(count, window)


def _check_room(executor: Executor, window: int) -> None:
    if window > executor.max_positions:
        raise InputError(
            f"a window of {window} tokens is longer than the model's context of "
            f"{executor.max_positions}; use a smaller --window"
        )
    room = (executor.num_pages - 1) * executor.page_size
    if window > room:
        raise InputError(
            f"a window of {window} tokens does not fit the {room} of the page pool; "
            "use a smaller --window"
        )


def _score_window(executors: Sequence[Executor], tokens: Int32) -> Iterator[_Scores]:
    for start in range(0, len(tokens) - 1, CHUNK_TOKENS):
        stop = min(start + CHUNK_TOKENS, len(tokens) - 1)
        logits = [one.step(chunk_batch(one, tokens, start, stop)) for one in executors]
        targets = tokens[start + 1 : stop + 1]
        for first in range(0, len(targets), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            yield _score_rows([values[rows] for values in logits], targets[rows])


def chunk_batch(executor: Executor, tokens: Int32, start: int, stop: int) -> StepBatch:
    """The step that runs positions [start, stop) of one sequence and asks for all their logits."""
    count = stop - start
    pages = -(-stop // executor.page_size)
    return StepBatch(
        token_ids=np.ascontiguousarray(tokens[start:stop], dtype=np.int32),
        positions=np.arange(start, stop, dtype=np.int32),
        query_starts=np.array([0, count], dtype=np.int32),
        page_table=np.arange(1, pages + 1, dtype=np.int32)[None, :],
        logit_rows=np.arange(count, dtype=np.int32),
    )


def _score_rows(logits: Sequence[Float32], targets: Int32) -> _Scores:
    place = (np.arange(len(targets)), targets)
    log_p = log_softmax(logits[0])
    if len(logits) == 1:
        nothing = np.zeros(len(targets))
        return _Scores(-log_p[place], nothing, nothing, nothing)
    log_q = log_softmax(logits[1])
    # A token that the baseline gives no chance at all adds nothing, whatever the model gives it.
    gap = np.subtract(log_q, log_p, out=np.zeros_like(log_q), where=log_q > -np.inf)
    divergence = np.einsum("rv,rv->r", np.exp(log_q), gap)
    agreement = (logits[0].argmax(axis=1) == logits[1].argmax(axis=1)).astype(np.float64)
    return _Scores(-log_p[place], -log_q[place], divergence, agreement)


def log_softmax(logits: Float32) -> Float64:
    """float64 [rows, vocab]: natural logarithms of the probabilities."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _join(parts: Sequence[_Scores]) -> _Scores:
    return _Scores(
        np.concatenate([part.loss for part in parts]),
        np.concatenate([part.baseline_loss for part in parts]),
        np.concatenate([part.divergence for part in parts]),
        np.concatenate([part.agreement for part in parts]),
    )


def _summarize(chunks: Sequence[_Scores], window: int, compared: bool) -> Evaluation:
    scores = _join(chunks)
    loss = _estimate(scores.loss)
    perplexity = _exp(loss.mean)
    alone = Evaluation(perplexity, perplexity * loss.se, len(scores.loss), window)
    if not compared:
        return alone
    baseline_loss = float(scores.baseline_loss.mean())
    divergence = _estimate(scores.divergence)
    p99, worst = np.quantile(scores.divergence, [0.99, 1.0])
    return replace(
        alone,
        kld=Divergence(divergence.mean, divergence.se, float(p99), float(worst)),
        top1=_estimate(scores.agreement),
        ppl_ratio=_exp(loss.mean - baseline_loss),
        baseline_perplexity=_exp(baseline_loss),
    )


def _estimate(values: Float64) -> Estimate:
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Estimate(float(values.mean()), spread / math.sqrt(len(values)))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
