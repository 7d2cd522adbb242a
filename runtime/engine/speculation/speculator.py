"""Who gets guesses, where from, and how many."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from runtime.engine.batch import Executor
from runtime.engine.options import EngineOptions
from runtime.engine.sequence import SequenceState
from runtime.engine.speculation.acceptance import Acceptance
from runtime.engine.speculation.costs import StepCosts
from runtime.engine.speculation.draft_model import DraftModel
from runtime.engine.speculation.ngrams import NgramIndex, continuation
from runtime.engine.stats import Counters

_log = logging.getLogger(__name__)

_LEAST_PROBABILITY = 0.1
"""Guesses below it are not made, even while nobody knows what they cost."""

_WEIGHT, _FADING = 0.25, 0.98
"""Of the model's latest guess in what is remembered, and what is left of it when none is asked."""

INDEXED_TOKENS = 4096
"""Of a prompt in one step: a few milliseconds."""


@dataclass(eq=False, slots=True)
class _Answer:
    """What is known about the guesses for one answer, by where they come from."""

    index: NgramIndex = field(default_factory=NgramIndex)
    long: Acceptance = field(default_factory=Acceptance)
    short: Acceptance = field(default_factory=Acceptance)
    model: Acceptance = field(default_factory=Acceptance)
    source: Acceptance | None = None
    """Of the guesses that are being checked."""


def make_speculator(
    options: EngineOptions,
    draft_executor: Executor | None,
    counters: Counters,
    clock: Callable[[], float],
) -> "Speculator | None":
    """None where nothing is to be guessed."""
    if draft_executor is None and not options.prompt_lookup:
        return None
    model = None
    if draft_executor is not None:
        model = DraftModel(draft_executor, options.max_step_tokens)
    return Speculator(options, model, counters, clock)


class Speculator:
    """Gives an answer as many guesses as pay: a guess is worth the probability that it comes true,
    and costs what a step takes longer for it. Both are measured, so that guessing ends by itself
    where it loses, and starts again a while later to see.

    counters: where the guesses are counted.
    """

    def __init__(
        self,
        options: EngineOptions,
        model: DraftModel | None,
        counters: Counters,
        clock: Callable[[], float],
    ) -> None:
        self._options = options
        self._model = model
        self._counters = counters
        self._clock = clock
        self._answers: dict[SequenceState, _Answer] = {}
        self._costs = StepCosts()
        self._guess_seconds = 0.0
        """What one more guess of the model takes."""

    def guess(self, sequences: Sequence[SequenceState], max_tokens: int) -> None:
        """Set the `drafts` of these sequences, which need their next token and share a step of
        `max_tokens` tokens."""
        left = min(max_tokens - len(sequences), self._options.max_extra_logit_rows)
        fixed, each = self._costs.line()
        bill = Bill(fixed + each * len(sequences), len(sequences), each)
        asked: dict[SequenceState, int] = {}
        for sequence in sequences:
            answer = self._answers.setdefault(sequence, _Answer())
            answer.source, sequence.drafts = None, ()
            most = min(
                self._options.max_draft_tokens,
                left,
                sequence.most_tokens - len(sequence.tokens) - 1,
            )
            if most <= 0:
                continue
            drafts = self._look_up(sequence, answer, bill, most)
            if drafts:
                sequence.drafts = drafts
                left -= len(drafts)
            elif self._model is not None:
                count = bill.count(answer.model, most, self._guess_seconds)
                asked[sequence] = count
                left -= count
        if any(asked.values()):
            self._ask_model(asked)
        elif asked:
            # An opinion that nobody tries fades, or a single slow guess would be the last.
            self._guess_seconds *= _FADING

    def note(self, sequence: SequenceState, num_drafts: int, num_accepted: int) -> None:
        """A step has checked the guesses."""
        if num_drafts:
            self._counters.drafts += 1
            self._counters.draft_tokens += num_drafts
            self._counters.accepted_draft_tokens += num_accepted
        answer = self._answers.get(sequence)
        if answer is None:
            return
        for acceptance in (answer.long, answer.short, answer.model):
            if acceptance is answer.source and num_drafts:
                acceptance.note(num_drafts, num_accepted)
            else:
                acceptance.fade()

    def note_step(self, num_tokens: int, seconds: float) -> None:
        """A step without prompts took so long."""
        self._costs.note(num_tokens, seconds)

    def drop(self, sequence: SequenceState) -> None:
        """The answer has ended."""
        self._answers.pop(sequence, None)
        if self._model is not None:
            self._model.drop(sequence)

    def check_integrity(self) -> None:
        if self._model is not None:
            self._model.check_integrity()

    def _look_up(
        self, sequence: SequenceState, answer: _Answer, bill: "Bill", most: int
    ) -> list[int]:
        if not self._options.prompt_lookup or not answer.index.extend(
            sequence.tokens, INDEXED_TOKENS
        ):
            return []
        found = answer.index.find(sequence.tokens)
        if found is None:
            return []
        place, is_long = found
        source = answer.long if is_long else answer.short
        count = bill.count(source, most)
        if count == 0:
            return []
        answer.source = source
        return continuation(sequence.tokens, place, count)

    def _ask_model(self, asked: dict[SequenceState, int]) -> None:
        assert self._model is not None
        started = self._clock()
        try:
            found = self._model.propose(asked)
        except Exception:
            _log.exception("the draft model failed; answers go on without it")
            self._model = None
            return
        for sequence, drafts in found.items():
            if drafts:
                sequence.drafts = drafts
                self._answers[sequence].source = self._answers[sequence].model
        longest = max(map(len, found.values()), default=0)
        if longest and not self._model.was_reading:
            each = (self._clock() - started) / longest
            moved = self._guess_seconds + _WEIGHT * (each - self._guess_seconds)
            self._guess_seconds = moved if self._guess_seconds else each


class Bill:
    """A step's expected tokens and seconds, as guesses are added."""

    def __init__(self, seconds: float, tokens: float, each: float) -> None:
        self._seconds, self._tokens, self._each = seconds, tokens, each

    def count(self, acceptance: Acceptance, most: int, guess_seconds: float = 0.0) -> int:
        """How many guesses gain more tokens in their time than the step does without them."""
        rate, seconds = acceptance.rate, self._each + guess_seconds
        probability, count = rate, 0
        while (
            count < most
            and probability > _LEAST_PROBABILITY
            and probability * self._seconds >= seconds * self._tokens
        ):
            self._seconds += seconds
            self._tokens += probability
            probability *= rate
            count += 1
        return count
