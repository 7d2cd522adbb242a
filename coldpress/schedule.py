"""A probe's tokens run as a server runs them, and run plainly: the logits must be the same numbers.

Mixed: three sequences share steps under the real scheduler, in chunks and in single tokens, in so
few pages that one of them is preempted and computed anew; a fourth begins in the pages that another
one filled. Plain: each sequence alone, in one step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from runtime.engine.batch import Executor, StepBatch

Logits = npt.NDArray[np.float32]

PAGE_SIZE = 8
STEP_TOKENS = 11
"""Tokens of a step: odd, so that chunks end inside pages."""
SHARES = (0.36, 0.62, 0.78)
"""Where the tokens of a probe are cut into the sequences of a mixed schedule."""
LEAST = 40
"""A probe of fewer tokens is one sequence."""


@dataclass(frozen=True)
class Probe:
    """Sequences that are scheduled together, and one that continues the first `shared` tokens of
    the first of them. The logits are of all tokens in this order, the shared ones counted once."""

    sequences: tuple[tuple[int, ...], ...]
    branch: tuple[int, ...] = ()
    shared: int = 0

    @property
    def pages(self) -> int:
        """Of the pool that both ways of running need, the reserved one included."""
        longest = max(len(sequence) for sequence in self.sequences) + 1
        together = sum(_pages(len(sequence) + 1) for sequence in self.sequences)
        apart = _pages(self.shared) + _pages(longest) + _pages(len(self.branch) + self.shared)
        return max(together, apart) + 1


@dataclass(frozen=True)
class ScheduleFacts:
    """How a probe was run. chunks: parts of a sequence of several tokens; single_tokens: of one."""

    steps: int
    chunks: int
    single_tokens: int
    preemptions: int
    shared_tokens: int


def probe_of(tokens: Sequence[int]) -> Probe:
    """The sequences that a flat list of tokens stands for."""
    if len(tokens) < LEAST:
        return Probe((tuple(tokens),))
    cuts = [0]
    for share in SHARES:
        # A recorder knows sequences by their first tokens.
        taken = {tokens[cut] for cut in cuts}
        start = round(share * len(tokens))
        cuts.append(next(cut for cut in range(start, len(tokens)) if tokens[cut] not in taken))
    parts = [tuple(tokens[a:b]) for a, b in pairwise([*cuts, len(tokens)])]
    shared = (len(parts[0]) - 1) // PAGE_SIZE * PAGE_SIZE
    return Probe(tuple(parts[:-1]), parts[-1], shared)


def run_plain(executor: "Executor", probe: Probe) -> Logits:
    """float32 [tokens, vocab]: each sequence alone, in one step."""
    whole = [np.asarray(sequence, np.int32) for sequence in probe.sequences]
    rows = [_alone(executor, sequence) for sequence in whole]
    if probe.branch:
        prefix = whole[0][: probe.shared]
        rows.append(_alone(executor, np.array([*prefix, *probe.branch], np.int32))[probe.shared :])
    return np.concatenate(rows)


def run_mixed(executor: "Executor", probe: Probe) -> tuple[Logits, ScheduleFacts]:
    """float32 [tokens, vocab] of the mixed schedule, and what happened in it.

    executor: with pages of PAGE_SIZE tokens, at least `probe.pages` of them.
    """
    recorder = _Recorder(executor, probe.sequences, _tight_pages(executor, probe))
    preemptions = _serve(recorder, probe.sequences)
    rows = [recorder.rows(index) for index in range(len(probe.sequences))]
    if probe.branch:
        rows.append(_run_branch(recorder, probe))
    facts = ScheduleFacts(
        recorder.steps, recorder.chunks, recorder.single_tokens, preemptions, probe.shared
    )
    return np.concatenate(rows), facts


class _Recorder:
    """An executor between the engine and the real one. It asks for the logits of every token and
    keeps them; the engine is given such as make it choose the probe's own next token.

    A sequence is known by its first page, which it owns from its first token to its last.
    """

    def __init__(
        self,
        executor: "Executor | None",
        sequences: Sequence[Sequence[int]],
        num_pages: int,
    ) -> None:
        self.page_size, self.num_pages = PAGE_SIZE, num_pages
        self.max_positions = max(len(sequence) for sequence in sequences) + 2
        self.vocab_size = executor.vocab_size if executor else len(sequences) + 1
        self.steps = self.chunks = self.single_tokens = 0
        self._executor, self._sequences = executor, sequences
        self._owners: dict[int, int] = {}
        self._found: dict[tuple[int, int], Logits] = {}

    def step(self, batch: "StepBatch") -> Logits:
        self._owned(batch)
        self.observed(batch)
        chosen = np.zeros((len(batch.logit_rows), self.vocab_size), np.float32)
        for row, index in enumerate(batch.logit_rows):
            sequence = self._sequences[self._owner_of(batch, int(index))]
            after = int(batch.positions[index]) + 1
            token = sequence[after] if after < len(sequence) else 0
            chosen[row, token if self._executor else 0] = 1
        return chosen

    def observed(self, batch: "StepBatch") -> Logits:
        """All logits of a step of the real executor; they are kept by sequence and position."""
        sizes = np.diff(batch.query_starts)
        self.steps += 1
        self.chunks += int((sizes > 1).sum())
        self.single_tokens += int((sizes == 1).sum())
        if self._executor is None:
            return np.zeros((0, 0), np.float32)
        every = np.arange(len(batch.token_ids), dtype=np.int32)
        logits = self._executor.step(replace(batch, logit_rows=every)).copy()
        for index, row in enumerate(logits):
            owner = self._owners.get(int(batch.page_table[self._place(batch, index), 0]))
            if owner is not None:
                self._found[owner, int(batch.positions[index])] = row
        return logits

    def rows(self, owner: int) -> Logits:
        count = len(self._sequences[owner])
        return np.stack([self._found[owner, position] for position in range(count)])

    def forget(self) -> None:
        """Sequences that are run from here on are nobody's."""
        self._owners.clear()

    def close(self) -> None:
        """The real executor is its owner's."""

    def _owned(self, batch: "StepBatch") -> None:
        for place, start in enumerate(batch.query_starts[:-1]):
            if batch.positions[start] == 0:
                first = int(batch.token_ids[start])
                owner = next(n for n, tokens in enumerate(self._sequences) if tokens[0] == first)
                self._owners[int(batch.page_table[place, 0])] = owner

    def _owner_of(self, batch: "StepBatch", index: int) -> int:
        return self._owners[int(batch.page_table[self._place(batch, index), 0])]

    def _place(self, batch: "StepBatch", index: int) -> int:
        return int(np.searchsorted(batch.query_starts, index, side="right")) - 1


def _serve(recorder: _Recorder, sequences: Sequence[Sequence[int]]) -> int:
    """Answers all sequences: their first parts are prompts, the rest is forced. Preemptions."""
    from runtime.engine.engine import Engine
    from runtime.engine.options import EngineOptions
    from runtime.engine.request import Request, SamplingParams

    engine = Engine(
        recorder, EngineOptions(max_step_tokens=STEP_TOKENS, prefix_cache=False), check=True
    )
    greedy = SamplingParams(temperature=0.0)
    for index, sequence in enumerate(sequences):
        prompt = tuple(sequence[: max(1, len(sequence) // 2)])
        answer = len(sequence) - len(prompt) + 1
        engine.add(Request(str(index), prompt, answer, greedy))
    while engine.has_work:
        engine.step()
    return engine.stats.preemptions


def _tight_pages(executor: "Executor", probe: Probe) -> int:
    """The most pages, up to those of the executor, with which the scheduler has to preempt."""
    least = _pages(max(len(sequence) for sequence in probe.sequences) + 2)
    stand_ins = [(index,) * len(tokens) for index, tokens in enumerate(probe.sequences)]
    for pages in range(executor.num_pages, least, -1):
        if _serve(_Recorder(None, stand_ins, pages), stand_ins):
            return pages
    return executor.num_pages


def _run_branch(recorder: _Recorder, probe: Probe) -> Logits:
    """The logits of the branch, which reads the pages that the first sequence filled and runs
    beside it."""
    recorder.forget()
    first = np.asarray(probe.sequences[0], np.int32)
    branch = np.array([*first[: probe.shared], *probe.branch], np.int32)
    common = list(range(1, _pages(probe.shared) + 1))
    own = len(common) + 1 + _pages(len(first) - probe.shared)
    mine = [*common, *range(len(common) + 1, own)]
    theirs = [*common, *range(own, own + _pages(len(probe.branch)))]
    recorder.observed(_batch([(first, mine, 0, probe.shared)]))
    middle = probe.shared + len(probe.branch) // 2
    together = [
        (first, mine, probe.shared, len(first)),
        (branch, theirs, probe.shared, middle),
    ]
    rows = [recorder.observed(_batch(together))[len(first) - probe.shared :]]
    rows += [
        recorder.observed(_batch([(branch, theirs, at, at + 1)]))
        for at in range(middle, len(branch))
    ]
    return np.concatenate(rows)


def _alone(executor: "Executor", tokens: npt.NDArray[np.int32]) -> Logits:
    from runtime.evaluation.protocol import chunk_batch

    return executor.step(chunk_batch(executor, tokens, 0, len(tokens))).copy()


def _batch(parts: Sequence[tuple[npt.NDArray[np.int32], list[int], int, int]]) -> "StepBatch":
    """A step of parts (tokens of a sequence, its pages, start, stop), no logits asked for."""
    from runtime.engine.batch import StepBatch

    width = max(_pages(stop) for _, _, _, stop in parts)
    table = np.zeros((len(parts), width), np.int32)
    for row, (_, pages, _, stop) in enumerate(parts):
        table[row, : _pages(stop)] = pages[: _pages(stop)]
    sizes = [stop - start for _, _, start, stop in parts]
    return StepBatch(
        token_ids=np.concatenate([tokens[start:stop] for tokens, _, start, stop in parts]),
        positions=np.concatenate([np.arange(a, b, dtype=np.int32) for _, _, a, b in parts]),
        query_starts=np.cumsum([0, *sizes], dtype=np.int32),
        page_table=table,
        logit_rows=np.zeros(0, np.int32),
    )


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE_SIZE)
