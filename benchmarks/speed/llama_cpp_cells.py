"""llama.cpp's own loop, without sampling: python -m benchmarks.speed.llama_cpp_cells FILE [THREADS]

What it leaves out, choosing tokens and planning steps, the others do within their times.
"""

import ctypes
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from benchmarks.speed.cells import (
    CONTEXT,
    PROMPT,
    REQUESTS,
    ROUNDS,
    STEP_TOKENS,
    STREAMS,
    wanted_cells,
)

LONGEST = 16384
"""Positions of all sequences together."""


class Session:
    """One context; sequences are numbered from 0."""

    def __init__(self, path: str, threads: int) -> None:
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = LONGEST, 4 * STEP_TOKENS, STEP_TOKENS
        params.n_seq_max, params.kv_unified = REQUESTS, True
        params.n_threads = params.n_threads_batch = threads
        self._context: Any = llama_cpp.llama_init_from_model(self._model, params)
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._random = np.random.default_rng(0)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def step(self, sequences: Sequence[int], positions: Sequence[int], wanted: set[int]) -> None:
        """One random token for each entry; logits for those whose index is in `wanted`."""
        count = len(sequences)
        tokens = self._random.integers(100, self._vocab_size - 1, count)
        batch = llama_cpp.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for i in range(count):
            batch.token[i], batch.pos[i] = int(tokens[i]), positions[i]
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequences[i]
            batch.logits[i] = i in wanted
        if llama_cpp.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_synchronize(self._context)
        llama_cpp.llama_batch_free(batch)

    def prompt(self, sequence: int, tokens: int) -> float:
        """Seconds of one prompt."""
        start = time.perf_counter()
        self.step([sequence] * tokens, range(tokens), {tokens - 1})
        return time.perf_counter() - start

    def decode(self, streams: int, steps: int) -> float:
        """Tokens per second."""
        self.clear()
        for sequence in range(streams):
            self.prompt(sequence, CONTEXT)
        start = time.perf_counter()
        for step in range(steps):
            self.step(range(streams), [CONTEXT + step] * streams, set(range(streams)))
        return streams * steps / (time.perf_counter() - start)

    def prefill(self, tokens: int) -> float:
        """Tokens per second."""
        self.clear()
        return tokens / self.prompt(0, tokens)

    def together(self, streams: int, tokens: int) -> float:
        """Tokens made per second by so many prompts of `tokens`, and as many tokens behind each.

        A step of its loop has as many rows of prompts as fit, and then one of each stream.
        """
        self.clear()
        start = time.perf_counter()
        at_once = 4 * STEP_TOKENS // tokens
        for first in range(0, streams, at_once):
            some = range(first, min(first + at_once, streams))
            rows = [sequence for sequence in some for _ in range(tokens)]
            last = {tokens * (number + 1) - 1 for number in range(len(some))}
            self.step(rows, [*range(tokens)] * len(some), last)
        for position in range(tokens, 2 * tokens - 1):
            self.step(range(streams), [position] * streams, set(range(streams)))
        return streams * tokens / (time.perf_counter() - start)


def main(path: str, threads: int) -> None:
    session = Session(path, threads)
    session.prefill(CONTEXT)
    found = wanted_cells(
        STREAMS,
        lambda: max(session.prefill(PROMPT) for _ in range(ROUNDS + 1)),
        lambda streams: max(session.decode(streams, STREAMS[streams]) for _ in range(ROUNDS)),
        lambda: session.together(REQUESTS, CONTEXT),
    )
    print(json.dumps({"model": path, **found}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2)
