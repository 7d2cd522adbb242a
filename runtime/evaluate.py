"""Evaluates an executor on a text, beside a baseline if there is one.

The protocols are those of `runtime.evaluation.protocol`; one tokenization of the whole text.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from quant.format.errors import InputError
from runtime.engine.batch import Executor
from runtime.evaluation.baseline import Baseline, LiveBaseline
from runtime.evaluation.figures import Evaluation, summarize
from runtime.evaluation.protocol import Protocol, chunk_batch, require_room
from runtime.evaluation.scores import ROWS_AT_ONCE, Scores, join, score_against, score_alone

Int32 = npt.NDArray[np.int32]
Progress = Callable[[int, int, str], None]


def evaluate(
    executor: Executor,
    token_ids: Sequence[int] | Int32,
    *,
    baseline: Executor | Baseline | None = None,
    protocol: Protocol | None = None,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Perplexity of `executor` on `token_ids` and, with a `baseline`, the distance to it.

    Both see the same windows in lockstep, so that memory holds one chunk of logits each. Raises
    InputError when the text fills no window or an executor cannot hold one.
    """
    protocol = Protocol() if protocol is None else protocol
    require_room(executor, protocol.window)
    if baseline is not None and not isinstance(baseline, Baseline):
        baseline = LiveBaseline(baseline, protocol)
    if baseline is not None and baseline.vocab_size != executor.vocab_size:
        raise InputError(
            f"the baseline predicts {baseline.vocab_size} tokens and the model "
            f"{executor.vocab_size}; compare models that share a tokenizer"
        )
    windows = protocol.windows(token_ids)
    parts: list[Scores] = []
    for index, tokens in enumerate(windows):
        parts.extend(_score_window(executor, baseline, protocol, tokens))
        if on_progress is not None:
            on_progress(index + 1, len(windows), "windows scored")
    return summarize(join(parts), protocol, baseline is not None)


def _score_window(
    executor: Executor, baseline: Baseline | None, protocol: Protocol, tokens: Int32
) -> Iterator[Scores]:
    for start, stop, scored in protocol.steps():
        logits = executor.step(chunk_batch(executor, tokens, start, stop, all_logits=scored))
        if baseline is not None:
            baseline.step(tokens, start, stop, scored)
        targets = tokens[start + 1 : stop + 1]
        for first in range(0, len(targets) if scored else 0, ROWS_AT_ONCE):
            rows = slice(first, min(first + ROWS_AT_ONCE, len(targets)))
            if baseline is None:
                yield score_alone(logits[rows], targets[rows])
            else:
                yield score_against(baseline.rows(rows, targets[rows]), logits[rows], targets[rows])
