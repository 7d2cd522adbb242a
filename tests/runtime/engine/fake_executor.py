"""A model whose every logit depends on its whole context, read back through the page table.

Each token's cache entry is a hash of the previous entry, its own token and its position; a row's
logits are a hash of all entries from position 0 on. One wrong page, position or stale entry
changes every later token, so equal text means equal accounting.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from runtime.engine.batch import StepBatch
from runtime.engine.engine import Engine
from runtime.engine.request import Request, TokenEvent

UInt64 = npt.NDArray[np.uint64]
_MASK = 2**64 - 1


def mix(value: int) -> int:
    """The finalizer of splitmix64."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def entry_of(previous: int, token_id: int, position: int) -> int:
    return mix(previous ^ mix(token_id * 1_000_003 + position))


def logits_of(entries: Sequence[int], vocab_size: int) -> npt.NDArray[np.float32]:
    """Logits in [-4, 4) after these cache entries."""
    state = 0
    for entry in entries:
        state = mix(state ^ entry)
    values = [mix(state + i) / 2**64 * 8 - 4 for i in range(vocab_size)]
    return np.array(values, np.float32)


class FakeExecutor:
    """Implements `Executor`; `before_step` may raise or look at the batch."""

    def __init__(
        self,
        *,
        num_pages: int = 64,
        page_size: int = 4,
        vocab_size: int = 23,
        max_positions: int = 200,
    ) -> None:
        self.vocab_size = vocab_size
        self.max_positions = max_positions
        self.page_size = page_size
        self.num_pages = num_pages
        self.batches: list[StepBatch] = []
        self.before_step: Callable[[StepBatch], None] = lambda batch: None
        self.closed = False
        self._cache = [
            [mix(page * 997 + slot) for slot in range(page_size)] for page in range(num_pages)
        ]

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        check_batch(batch, self)
        self.batches.append(batch)
        self._write(batch)
        self.before_step(batch)
        rows = [self._row_logits(batch, int(row)) for row in batch.logit_rows]
        return np.array(rows, np.float32).reshape(len(rows), self.vocab_size)

    def close(self) -> None:
        self.closed = True

    def _write(self, batch: StepBatch) -> None:
        for index in range(len(batch.query_starts) - 1):
            pages = batch.page_table[index]
            for t in range(batch.query_starts[index], batch.query_starts[index + 1]):
                position = int(batch.positions[t])
                previous = self._read(pages, position - 1) if position else 0
                page = int(pages[position // self.page_size])
                entry = entry_of(previous, int(batch.token_ids[t]), position)
                self._cache[page][position % self.page_size] = entry

    def _row_logits(self, batch: StepBatch, row: int) -> npt.NDArray[np.float32]:
        index = int(np.searchsorted(batch.query_starts, row, side="right")) - 1
        pages = batch.page_table[index]
        entries = [self._read(pages, p) for p in range(int(batch.positions[row]) + 1)]
        return logits_of(entries, self.vocab_size)

    def _read(self, pages: npt.NDArray[np.int32], position: int) -> int:
        return self._cache[int(pages[position // self.page_size])][position % self.page_size]


def check_batch(batch: StepBatch, executor: FakeExecutor) -> None:
    """What `StepBatch` promises."""
    arrays = (
        batch.token_ids,
        batch.positions,
        batch.query_starts,
        batch.page_table,
        batch.logit_rows,
    )
    assert all(array.dtype == np.int32 and array.flags.c_contiguous for array in arrays)
    total, sequences = len(batch.token_ids), len(batch.page_table)
    assert total > 0 and len(batch.positions) == total and len(batch.query_starts) == sequences + 1
    starts = batch.query_starts.tolist()
    assert starts[0] == 0 and starts[-1] == total and (np.diff(batch.query_starts) > 0).all()
    assert (np.diff(batch.logit_rows) > 0).all() and set(batch.logit_rows) <= set(range(total))
    rows: list[tuple[set[int], set[int]]] = []
    for index, pages in enumerate(batch.page_table.tolist()):
        positions = batch.positions[starts[index] : starts[index + 1]].tolist()
        assert positions == list(range(positions[0], positions[0] + len(positions)))
        width = positions[-1] // executor.page_size + 1
        assert all(0 < page < executor.num_pages for page in pages[:width])
        assert all(page == 0 for page in pages[width:])
        first = positions[0] // executor.page_size
        rows.append((set(pages[:width]), set(pages[first:width])))
        assert len(rows[-1][0]) == width, "a sequence has a page twice"
    for index, (_, written) in enumerate(rows):
        for other, (read, _) in enumerate(rows):
            assert index == other or not written & read, "a page is written and shared"


def greedy_answer(request: Request, executor: FakeExecutor) -> list[int]:
    """The oracle: the whole context hashed anew for each token, no cache, no engine."""
    tokens = list(request.prompt_tokens)
    answer: list[int] = []
    while len(answer) < request.max_tokens:
        entries: list[int] = []
        for position, token_id in enumerate(tokens):
            entries.append(entry_of(entries[-1] if entries else 0, token_id, position))
        answer.append(int(logits_of(entries, executor.vocab_size).argmax()))
        tokens.append(answer[-1])
        if answer[-1] in request.stop_token_ids:
            break
    return answer


class Transcript:
    """Collects events, and holds every request to one end and no word after it."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, TokenEvent] = {}

    def note(self, events: Sequence[TokenEvent]) -> None:
        for event in events:
            assert event.request_id not in self.ends, f"{event.request_id} speaks after its end"
            if event.token_id is not None:
                self.tokens.setdefault(event.request_id, []).append(event.token_id)
            if event.finish_reason is not None:
                self.ends[event.request_id] = event


def run_to_end(engine: Engine, max_steps: int = 2000) -> Transcript:
    """Step until no work is left; more than `max_steps` steps is a livelock."""
    transcript = Transcript()
    for _ in range(max_steps):
        if not engine.has_work:
            return transcript
        transcript.note(engine.step())
    raise AssertionError(f"work is left after {max_steps} steps")
