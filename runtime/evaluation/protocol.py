"""Which positions of a text are scored, and in which steps a window runs: two published ways."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from quant.format.errors import InputError
from runtime.engine.batch import Executor, StepBatch

Int32 = npt.NDArray[np.int32]
ProtocolName = Literal["paper", "llama.cpp"]

WINDOW_TOKENS: dict[ProtocolName, int] = {"paper": 2048, "llama.cpp": 512}
CHUNK_TOKENS = 128
"""Tokens per step: bounds the logits in memory to this many rows per executor."""


@dataclass(frozen=True)
class Protocol:
    """Windows that do not overlap; the tail that fills none is dropped.

    "paper" (GPTQ and its successors): every position of a window but the first is scored.
    "llama.cpp" (`llama-perplexity`): the first token of each window is replaced by `bos_id`, where
    the model begins texts with one, and only tokens after the middle are scored, so that each has
    half a window of context: 255 of 512.
    """

    name: ProtocolName = "paper"
    window: int = WINDOW_TOKENS["paper"]
    bos_id: int | None = None

    @property
    def first_row(self) -> int:
        """First position of a window whose logits count."""
        return self.window // 2 if self.name == "llama.cpp" else 0

    @property
    def scored(self) -> int:
        """Tokens scored per window."""
        return self.window - 1 - self.first_row

    def windows(self, token_ids: Sequence[int] | Int32) -> Int32:
        """int32 [windows, window]. Raises InputError for a text that fills none."""
        if self.scored < 1:
            raise InputError(f"a window of {self.window} token(s) scores nothing; use at least 3")
        windows = split_windows(token_ids, self.window)
        if self.name == "llama.cpp" and self.bos_id is not None:
            windows = windows.copy()
            windows[:, 0] = self.bos_id
        return windows

    def steps(self) -> Iterator[tuple[int, int, bool]]:
        """(start, stop, scored) of each step of a window, in order."""
        for begin, end, scored in (
            (0, self.first_row, False),
            (self.first_row, self.window - 1, True),
        ):
            for start in range(begin, end, CHUNK_TOKENS):
                yield start, min(start + CHUNK_TOKENS, end), scored


def split_windows(token_ids: Sequence[int] | Int32, window: int) -> Int32:
    """int32 [windows, window]: the whole windows of a text; its tail is dropped."""
    tokens = np.asarray(token_ids, dtype=np.int32)
    count = len(tokens) // window
    if count == 0:
        raise InputError(
            f"the text has {len(tokens)} tokens, fewer than one window of {window}; "
            "give a longer text or a smaller --window"
        )
    return tokens[: count * window].reshape(count, window)


def require_room(executor: Executor, window: int) -> None:
    """Raises InputError where `executor` cannot hold one window."""
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


def chunk_batch(
    executor: Executor, tokens: Int32, start: int, stop: int, *, all_logits: bool = True
) -> StepBatch:
    """The step that runs positions [start, stop) of one sequence; all their logits, or the last."""
    count = stop - start
    pages = -(-stop // executor.page_size)
    return StepBatch(
        token_ids=np.ascontiguousarray(tokens[start:stop], dtype=np.int32),
        positions=np.arange(start, stop, dtype=np.int32),
        query_starts=np.array([0, count], dtype=np.int32),
        page_table=np.arange(1, pages + 1, dtype=np.int32)[None, :],
        logit_rows=np.arange(0 if all_logits else count - 1, count, dtype=np.int32),
    )
