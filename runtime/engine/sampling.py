"""Choosing the next token of each row; what a request keeps between its draws."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.engine.batch import LogitEdits, PlainDraw
from runtime.engine.candidates import Float32, draw_token, log_probabilities
from runtime.engine.constraint import ConstraintError, Matcher
from runtime.engine.edits import EditsBuilder
from runtime.engine.request import Request, SamplingParams, TokenLogprobs

NOT_FINITE = "The model produced logits that are not finite numbers."
NOTHING_TO_CHOOSE = "Bias, penalties, min_tokens and the constraint leave no token to choose."


@dataclass(slots=True)
class Draw:
    """A token, or the sentence that says why there is none."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None
    error: str | None = None
    corrupted: bool = False
    """The logits were not finite numbers."""


class RowSampler:
    """One request's sampling state: its random generator, and counts of the tokens it has seen.

    Depends on the request alone, and is untouched by preemption: a draw is never repeated. Equal
    seeds give equal draws, whatever the request is called. The matcher of a constrained request
    moves with `note`. draw_row: see `runtime.engine.drawing.DrawRow`.
    """

    def __init__(
        self,
        request: Request,
        vocab_size: int,
        matcher: Matcher | None = None,
        draw_row: Callable[[Float32, SamplingParams, float], int] = draw_token,
    ) -> None:
        self._draw_row = draw_row
        params = request.sampling
        self._params = params
        self._vocab_size = vocab_size
        self._generator: np.random.Generator | None = None
        if params.temperature > 0:
            seed = None if params.seed is None else params.seed % 2**64
            self._generator = np.random.default_rng(seed)
        self._seen: npt.NDArray[np.bool_] | None = None
        if params.repetition_penalty != 1:
            self._seen = np.zeros(vocab_size, np.bool_)
            self._seen[list(request.prompt_tokens)] = True
        self._answer_counts: Float32 | None = None
        if params.frequency_penalty != 0 or params.presence_penalty != 0:
            self._answer_counts = np.zeros(vocab_size, np.float32)
        self._bias_ids = np.fromiter(params.logit_bias.keys(), np.intp)
        with np.errstate(over="ignore"):
            self._bias = np.fromiter(params.logit_bias.values(), np.float32)
        self._min_tokens = request.min_tokens
        self._ending_ids = [i for i in request.stop_token_ids if 0 <= i < vocab_size]
        self._matcher = matcher
        self._forbidden: npt.NDArray[np.bool_] | None = None
        if params.allowed_token_ids is not None:
            self._forbidden = np.ones(vocab_size, np.bool_)
            self._forbidden[list(params.allowed_token_ids)] = False
        self._answer_end: deque[int] = deque(
            maxlen=max((len(word) - 1 for word in params.bad_words), default=0)
        )
        self._always_edits = (
            self._seen is not None
            or self._answer_counts is not None
            or self._forbidden is not None
            or self._bias_ids.size > 0
            or bool(params.bad_words)
        )

    @property
    def finished(self) -> bool:
        """A constraint leaves nothing that could follow."""
        return self._matcher is not None and self._matcher.finished

    @property
    def shows_nothing(self) -> bool:
        """Whether nobody asks for more of a row than its token."""
        return self._params.logprobs is None and self._params.prompt_logprobs is None

    @property
    def looks_back(self) -> bool:
        """Whether a draw depends on the tokens drawn before it, by more than the model's logits."""
        counts = self._seen is not None or self._answer_counts is not None
        return counts or bool(self._params.bad_words) or self._matcher is not None

    def draws_plainly(self, num_answer_tokens: int) -> bool:
        """Whether the next token is drawn, and from the model's logits as they are, and nobody asks
        for more of them."""
        edits = self._always_edits or self._matcher is not None
        ending = num_answer_tokens < self._min_tokens and bool(self._ending_ids)
        return self._generator is not None and self.shows_nothing and not (edits or ending)

    def take_plain_draw(self, edits: LogitEdits | None) -> PlainDraw:
        """The next draw, with a random number that is thereby used. edits: from `edits`."""
        params = self._params
        uniform = 0.0 if self._generator is None else float(self._generator.random())
        return PlainDraw(
            params.temperature, params.top_k, params.top_p, params.min_p, uniform, edits
        )

    def edits(self, num_answer_tokens: int) -> LogitEdits | None:
        """What `draw` would do to its row before it chooses; None where it would do nothing.

        Raises ConstraintError where the grammar fails, as it will again when `draw` asks it.
        """
        params, matcher = self._params, self._matcher
        ending = num_answer_tokens < self._min_tokens and bool(self._ending_ids)
        if not ending and not self._always_edits and matcher is None:
            return None
        found = EditsBuilder(self._vocab_size)
        with np.errstate(over="ignore"):
            if self._seen is not None:
                found.penalize(self._seen, params.repetition_penalty)
            if self._answer_counts is not None:
                found.subtract(
                    self._answer_counts, params.frequency_penalty, params.presence_penalty
                )
            found.add(self._bias_ids, self._bias)
        if self._forbidden is not None:
            found.allow_only(~self._forbidden)
        found.ban(self._word_ends())
        if matcher is not None:
            matcher.compute()
            self._hold(found, matcher, ending)
        elif ending:
            found.ban(self._ending_ids)
        return found.edits()

    def _hold(self, found: EditsBuilder, matcher: Matcher, without_ending: bool) -> None:
        """As `_held`, of edits."""
        forbidden = matcher.forbidden()
        if forbidden is not None:
            found.ban(forbidden)
            found.ban(self._ending_ids if without_ending else [])
            return
        allowed = np.zeros(self._vocab_size, np.bool_)
        allowed[self._without_ending(matcher.allowed(), without_ending)] = True
        found.allow_only(allowed)

    def _without_ending(
        self, allowed: npt.NDArray[np.intp], without_ending: bool
    ) -> npt.NDArray[np.intp]:
        """Ending tokens stay where nothing else is left."""
        if not without_ending:
            return allowed
        others = allowed[~np.isin(allowed, self._ending_ids)]
        return others if others.size else allowed

    def note(self, token_id: int) -> None:
        """The token now belongs to the answer."""
        if self._seen is not None:
            self._seen[token_id] = True
        if self._answer_counts is not None:
            self._answer_counts[token_id] += 1
        self._answer_end.append(token_id)
        if self._matcher is not None:
            self._matcher.accept(token_id)

    def draw(self, row: Float32, best: int, num_answer_tokens: int) -> Draw:
        """Choose from raw logits `row` [vocab], of which `best` is the largest's lowest index."""
        if not np.isfinite(row[best]):
            return Draw(None, error=NOT_FINITE, corrupted=True)
        ending = num_answer_tokens < self._min_tokens and bool(self._ending_ids)
        edited = self._edit(row, ending) if ending or self._always_edits else row
        ids: npt.NDArray[np.intp] | None = None
        if self._matcher is not None:
            try:
                self._matcher.compute()
            except ConstraintError as error:
                return Draw(None, error=str(error))
            is_plain = edited is row and self._generator is None
            if not (is_plain and self._matcher.permits(best)):
                ids, edited = self._held(self._matcher, edited, ending)
        token_id = best
        if edited is not row:
            token_id = int(edited.argmax()) if edited.size else 0
            if not edited.size or not np.isfinite(edited[token_id]):
                return Draw(None, error=NOTHING_TO_CHOOSE)
        if self._generator is not None:
            token_id = self._draw_row(edited, self._params, self._generator.random())
        if ids is not None:
            token_id = int(ids[token_id])
        if self._params.logprobs is None:
            return Draw(token_id)
        return Draw(token_id, log_probabilities(row, token_id, self._params.logprobs))

    def _edit(self, row: Float32, without_ending: bool) -> Float32:
        """Penalties, then bias, then what may not be chosen, on a copy."""
        params = self._params
        edited = row.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            if self._seen is not None:
                seen = edited[self._seen]
                penalty = np.float32(params.repetition_penalty)
                edited[self._seen] = np.where(seen > 0, seen / penalty, seen * penalty)
            if self._answer_counts is not None:
                edited -= np.float32(params.frequency_penalty) * self._answer_counts
                edited -= np.float32(params.presence_penalty) * (self._answer_counts > 0)
            edited[self._bias_ids] += self._bias
        if without_ending and self._matcher is None:
            edited[self._ending_ids] = -np.inf
        if self._forbidden is not None:
            edited[self._forbidden] = -np.inf
        if params.bad_words:
            edited[self._word_ends()] = -np.inf
        return edited

    def _word_ends(self) -> list[int]:
        """Tokens that would complete a bad word."""
        end = tuple(self._answer_end)
        return [
            word[-1]
            for word in self._params.bad_words
            if len(word) == 1 or end[1 - len(word) :] == word[:-1]
        ]

    def _held(
        self, matcher: Matcher, logits: Float32, without_ending: bool
    ) -> tuple[npt.NDArray[np.intp] | None, Float32]:
        """The tokens that the grammar allows and their logits; None for all tokens, with the
        logits of the others at minus infinity. Ending tokens stay where nothing else is left."""
        forbidden = matcher.forbidden()
        if forbidden is not None:
            held = logits.copy()
            held[forbidden] = -np.inf
            if without_ending:
                held[self._ending_ids] = -np.inf
            return None, held
        allowed = self._without_ending(matcher.allowed(), without_ending)
        return allowed, logits[allowed]
