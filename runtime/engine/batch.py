"""What one step hands to an executor, and what an executor is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class StepBatch:
    """The tokens of one step, flattened over the S sequences that take part.

    token_ids: int32 [T].
    positions: int32 [T], place of each token in its own sequence, counted from 0.
    query_starts: int32 [S + 1]: the tokens of sequence s are [query_starts[s], query_starts[s+1]).
    page_table: int32 [S, P]: pages of each sequence in order; unused places hold page 0, which is
        reserved and never owned. Position p of sequence s lies in page_table[s, p // page_size],
        at offset p % page_size. Positions 0 .. last position of the step are readable; the step
        itself writes those of its own tokens.
    logit_rows: int32 [R], indices into the T tokens, ascending.
    """

    token_ids: Int32
    positions: Int32
    query_starts: Int32
    page_table: Int32
    logit_rows: Int32


class Executor(Protocol):
    """Runs one step of a Program. Owns the weights and the KV pool; knows no requests.

    A row's result never depends on who shares its step (batch invariance).
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_positions(self) -> int:
        """Longest context in tokens that the model was made for."""
        ...

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        ...

    @property
    def num_pages(self) -> int:
        """Pages in the pool, the reserved page 0 included."""
        ...

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        """Logits, float32 [R, vocab_size]; valid until the next call."""
        ...

    def close(self) -> None:
        """Free the weights and the pool; the executor cannot be used afterwards."""
        ...


@dataclass(frozen=True, eq=False)
class LogitEdits:
    """What becomes of a row's logits before a token is drawn from them.

    ids: int32 [E], ascending, each once. factor, frequency, presence, bias: float32 [E]: the logit
    of each is divided by `factor` where it is above 0 and multiplied by it elsewhere, `frequency`
    and then `presence` are subtracted, and `bias` is added, which is minus infinity for tokens that
    must not be drawn. allowed: int32 [ceil(vocab_size / 32)], one bit for each token, the lowest
    first: where it is 0, the logit is minus infinity; None allows all.
    """

    ids: Int32
    factor: npt.NDArray[np.float32]
    frequency: npt.NDArray[np.float32]
    presence: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    allowed: Int32 | None


@dataclass(frozen=True)
class PlainDraw:
    """How one row's next token is drawn where nobody needs to see its logits. temperature 0 is
    greedy, top_k 0 keeps all; uniform, in [0, 1), is the request's own random number. edits come
    first; None changes nothing."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    uniform: float
    edits: LogitEdits | None = None


NO_TOKEN = -1
"""In place of a token, where a row's logits are not finite numbers."""
NOTHING_LEFT = -2
"""In place of a token, where they are, but what its edits leave is not."""


@runtime_checkable
class FindsBest(Protocol):
    """What an executor has besides, where it finds the largest logits itself."""

    def best(self) -> Int32:
        """Of each row that `step` last gave, the index of its largest logit: the first of equal
        ones, or of the first that is not a number. int32 [R]; valid until the next call of
        `step`."""
        ...


@runtime_checkable
class ChoosesTokens(Protocol):
    """What an executor has besides, where logits are too much to be handed over."""

    @property
    def page_size(self) -> int: ...

    def choose(self, batch: StepBatch, draws: Sequence[PlainDraw]) -> Int32:
        """The next token of each logit row, int32 [R], or NO_TOKEN or NOTHING_LEFT; the step's keys
        and values are written as by `step`."""
        ...


@runtime_checkable
class DrawsRows(Protocol):
    """What an executor has besides, where it finds tokens in its logits itself."""

    def draw(
        self, logits: npt.NDArray[np.float32], rows: Sequence[int], draws: Sequence[PlainDraw]
    ) -> list[int]:
        """A token of each of these rows of logits [R, n], as its draw says; above temperature 0,
        and without edits. The largest number of each is finite."""
        ...


class StepInFlight(Protocol):
    """A step that has begun."""

    def tokens(self) -> Int32:
        """What `choose` gives, waited for. Raises whatever went wrong since the step began."""
        ...


@dataclass(frozen=True, eq=False)
class Follows:
    """The token of each sequence is what a row of another step chooses: that of the step begun just
    before. rows: int32 [S], one for each sequence, which has one token."""

    step: StepInFlight
    rows: Int32


@runtime_checkable
class RunsAhead(ChoosesTokens, Protocol):
    """What an executor has besides, where a step can begin before the one before it has ended.

    Steps run in the order in which they began: what a step writes is there for the next one, and
    what it writes for a sequence that has ended since is overwritten by who has its pages next.
    """

    def begin(
        self, batch: StepBatch, draws: Sequence[PlainDraw], follows: Follows | None = None
    ) -> StepInFlight:
        """Begin a step and return at once. follows: then `token_ids` means nothing."""
        ...


@runtime_checkable
class GivesHidden(Protocol):
    """What an executor has besides, where it can give the rows that logits are made of."""

    def hidden(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        """The normed output of the last layer in place of logits, float32 [R, hidden_size]; the
        step's keys and values are written as by `step`. Valid until the next call of either."""
        ...


@runtime_checkable
class GivesBack(Protocol):
    """What an executor has besides, where the memory of single pages can be given up."""

    def give_back(self, pages: Sequence[int]) -> None:
        """Nobody will read what these hold; they take memory again once they are written to."""
        ...
