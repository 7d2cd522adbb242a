"""Matchers over one model's vocabulary, made where its engine runs."""

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from runtime.engine.constraint import Constraint, ConstraintError
from runtime.machine import give_back_freed
from runtime.text.grammar.dialect import grammar_of, limits, shortened

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from runtime.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

MAX_MASK_SECONDS = 0.25
"""Processor time of one mask, after which its request ends: the others have waited for it."""
_FEW_WORDS = 256
_WARM_SECONDS = 0.02
_WARM_STEPS = 64
MAX_KEPT = 16
"""Grammars that are kept compiled for the next request that asks for the same."""


class GrammarCompiler:
    """The `Grammars` of one model. Nothing is read, and llguidance is not even imported, before the
    first constraint comes: the vocabulary takes tens of megabytes and up to a second.

    load: the model's tokenizer. vocab_size: rows of the model's output; may differ from the
    tokenizer's number of tokens.
    """

    def __init__(self, load: "Callable[[], Tokenizer]", vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._load = load
        self._tokenizer: LLTokenizer | None = None
        self._no_ending = -1
        self._lock = threading.Lock()
        self._kept: OrderedDict[Constraint, LLMatcher] = OrderedDict()

    def knows(self, constraint: Constraint) -> bool:
        """See `Grammars`."""
        with self._lock:
            return constraint in self._kept

    def matcher(self, constraint: Constraint) -> "TokenMatcher":
        """Where an answer begins. Raises ConstraintError for what cannot be compiled, and where the
        tokenizer cannot be read."""
        with self._lock:
            known = self._kept.get(constraint)
            if known is None:
                known = self._compiled(constraint)
                self._kept[constraint] = known
                if len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(constraint)
            return self._over(known.deep_copy())

    def _over(self, matcher: "LLMatcher") -> "TokenMatcher":
        num_words = -(-self._prepared().vocab_size // 32)
        return TokenMatcher(matcher, num_words, self.vocab_size, self._no_ending)

    def _compiled(self, constraint: Constraint) -> "LLMatcher":
        tokenizer = self._prepared()
        from llguidance import LLMatcher

        matcher = LLMatcher(tokenizer, grammar_of(constraint), log_level=0, limits=limits())
        if matcher.is_error():
            raise ConstraintError(shortened(matcher.get_error()))
        return self._warmed(matcher)

    def _warmed(self, matcher: "LLMatcher") -> "LLMatcher":
        """Walk along some text, so that the states on its way are there in every copy. What fails
        here will fail for the answer that gets there, which is told of it then."""
        copy = matcher.deep_copy()
        walker = self._over(matcher)
        deadline = time.monotonic() + _WARM_SECONDS
        with contextlib.suppress(ConstraintError):
            for step in range(_WARM_STEPS):
                walker.compute()
                ids = walker.allowed()
                if walker.finished or not ids.size or time.monotonic() > deadline:
                    break
                walker.accept(int(ids[step * 7919 % ids.size]))
        return matcher if matcher.reset() and not matcher.is_error() else copy

    def _prepared(self) -> "LLTokenizer":
        if self._tokenizer is None:
            try:
                source = self._load()
            except Exception as error:
                reason = str(error) or type(error).__name__
                raise ConstraintError(f"the model's tokenizer cannot be read: {reason}") from error
            self._tokenizer = self._vocabulary_of(source)
            del source
            give_back_freed()
        return self._tokenizer

    def _vocabulary_of(self, source: "Tokenizer") -> "LLTokenizer":
        from llguidance import LLTokenizer

        endings = sorted(source.ending_ids)
        if not endings:
            # Something must stand for "it may end here". It is never drawn.
            self._no_ending = max(source.special_ids, default=source.vocab_size - 1)
        # Parts of the vocabulary that masks take as a whole; those of short strings alone, which
        # are left out, save no measurable time and take as much memory again.
        slices = [each for each in LLTokenizer.general_slices() if not each.endswith("}")]
        return LLTokenizer(source.to_json(), eos_token=endings or [self._no_ending], slices=slices)


class TokenMatcher:
    """Where one answer stands; see `runtime.engine.constraint.Matcher`.

    num_words: of the mask over the tokenizer's tokens; further rows of the model's output are never
    allowed. never: a token that is never allowed; -1 for none.
    """

    def __init__(
        self, matcher: "LLMatcher", num_words: int, vocab_size: int, never: int = -1
    ) -> None:
        self._never = never
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._words = np.zeros(max(num_words, -(-vocab_size // 32)), np.uint32)
        self._mask_bytes = num_words * 4
        self._bytes = self._words.view(np.uint8)
        self._address = self._words.ctypes.data
        self.finished = False

    def compute(self) -> None:
        start = time.thread_time()
        try:
            self._matcher.unsafe_compute_mask_ptr(self._address, self._mask_bytes)
        except BaseException as failure:
            # Native code that panics raises what is no Exception; nobody else may suffer from it.
            if isinstance(failure, KeyboardInterrupt | SystemExit):
                raise
            _log.warning("a grammar failed: %s", shortened(str(failure)))
            raise ConstraintError(
                f"The answer's grammar failed: {shortened(str(failure))}"
            ) from None
        if self._matcher.is_error():
            reason = shortened(self._matcher.get_error())
            raise ConstraintError(f"The answer cannot be held to its constraint: {reason}")
        if time.thread_time() - start > MAX_MASK_SECONDS:
            raise ConstraintError("The answer's grammar is too complex to be followed in time.")
        if self._never >= 0:
            self._bytes[self._never >> 3] &= ~(1 << (self._never & 7)) & 0xFF

    def permits(self, token_id: int) -> bool:
        return bool(self._bytes[token_id >> 3] >> (token_id & 7) & 1)

    def forbidden(self) -> npt.NDArray[np.intp] | None:
        """Within the text of a string, nearly all tokens are allowed."""
        if np.count_nonzero(self._words) * 4 < self._words.size * 3:
            return None
        bits = self._all_bits()
        if np.count_nonzero(bits) * 4 < self._vocab_size * 3:
            return None
        return np.flatnonzero(~bits)

    def allowed(self) -> npt.NDArray[np.intp]:
        """Mostly few tokens are, in few words of the mask."""
        used = np.flatnonzero(self._words)
        if used.size > _FEW_WORDS:
            return np.flatnonzero(self._all_bits())
        bits = np.unpackbits(self._words[used].view(np.uint8), bitorder="little")
        places = np.flatnonzero(bits)
        ids: npt.NDArray[np.intp] = used[places >> 5] * 32 + (places & 31)
        return ids[: np.searchsorted(ids, self._vocab_size)]

    def _all_bits(self) -> npt.NDArray[np.bool_]:
        bits = np.unpackbits(self._bytes, count=self._vocab_size, bitorder="little")
        return bits.view(np.bool_)

    def accept(self, token_id: int) -> None:
        """A token that does not fit leaves the matcher in error, which `allowed` tells."""
        self._matcher.consume_token(token_id)
        self.finished = self._matcher.is_stopped() and not self._matcher.is_error()
