"""One live request: the tokens known, how many of them are computed, and the pages they lie in."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from runtime.engine.request import Request, TokenLogprobs
from runtime.engine.sampling import RowSampler

Chain = int | str
"""What a page of the prefix cache continues: the salt, or the serial number of the page before."""


@dataclass(eq=False, slots=True)
class SequenceState:
    """`tokens` are known: prompt, then answer. The first `num_computed_tokens` of them have their
    keys and values in `pages`; the rest is pending.

        tokens    [ prompt ............ | answer ... ]
        computed  [0 ........ num_computed_tokens)
        pending                [num_computed_tokens ... len(tokens))

    A new prompt, a chunk, one decode token, a prefix that others have computed and the return after
    a preemption differ only in these numbers. `arrival` counts accepted requests.

    The first `num_shared_pages` pages are full and known to the prefix cache, and `chain` is what
    the next one will continue.
    """

    request: Request
    arrival: int
    sampler: RowSampler
    tokens: list[int] = field(init=False)
    num_prompt_tokens: int = field(init=False)
    num_computed_tokens: int = 0
    pages: list[int] = field(default_factory=list)
    num_shared_pages: int = 0
    chain: Chain = field(init=False)
    times_overtaken: int = 0
    """Requests that came later and were let in earlier."""
    arrived_at: float = 0.0
    started: bool = False
    """It was let in once, at `started_at`; both times are the engine's clock's."""
    started_at: float = 0.0
    num_cached_tokens: int = 0
    """Prompt tokens that were found computed, and that this request never computed itself."""
    num_reached_tokens: int = 0
    """The most tokens that were ever computed, before preemptions too."""
    drafts: Sequence[int] = ()
    """Guesses at the tokens that come next, for the step that is planned next."""
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    wants_prompt_logprobs: bool = field(init=False)
    """Probabilities of prompt tokens are asked for and not all there."""
    pooled: npt.NDArray[np.float64] | None = None
    """Sum of the hidden rows of the first `num_pooled_tokens`, where their mean is wanted."""
    num_pooled_tokens: int = 0

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_tokens)
        self.num_prompt_tokens = len(self.tokens)
        self.chain = self.request.cache_salt
        asked = self.request.sampling.prompt_logprobs is not None
        self.wants_prompt_logprobs = asked and self.num_prompt_tokens > 1

    @property
    def order(self) -> tuple[int, int]:
        """Who is served first: the smaller priority, then the earlier arrival."""
        return self.request.priority, self.arrival

    @property
    def num_known_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_pending_tokens(self) -> int:
        return len(self.tokens) - self.num_computed_tokens

    @property
    def num_answer_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def most_tokens(self) -> int:
        """Tokens of the prompt and of the longest answer."""
        return self.num_prompt_tokens + self.request.max_tokens

    @property
    def first_logit_position(self) -> int:
        """From this position on, logits are wanted of every position that is known: of the last
        one, to choose the next token; of the prompt, where its own probabilities are asked for.
        Where an embedding is wanted, these are rows of hidden numbers instead."""
        if self.wants_prompt_logprobs:
            return len(self.prompt_logprobs)
        if self.request.pooling == "mean":
            return self.num_pooled_tokens
        return len(self.tokens) - 1

    def append(self, token_id: int) -> None:
        """One more answer token is known."""
        self.sampler.note(token_id)
        self.tokens.append(token_id)

    def advance(self, num_tokens: int) -> None:
        """So many more tokens are computed."""
        self.num_computed_tokens = computed = self.num_computed_tokens + num_tokens
        if computed > self.num_reached_tokens:
            self.num_reached_tokens = computed

    def skip_to(self, num_tokens: int) -> None:
        """The first `num_tokens` were found computed."""
        self.num_cached_tokens += max(0, num_tokens - self.num_reached_tokens)
        self.advance(num_tokens - self.num_computed_tokens)

    def forget(self) -> None:
        """Nothing is computed any more."""
        self.pages.clear()
        self.num_computed_tokens = self.num_shared_pages = 0
        self.drafts = ()
        self.chain = self.request.cache_salt

    def check_integrity(self, page_size: int) -> None:
        """Computed tokens are known, and every one of them has its slot."""
        name = self.request.request_id
        assert 0 <= self.num_computed_tokens < self.num_known_tokens, (
            f"request {name}: {self.num_computed_tokens} computed of {self.num_known_tokens} known"
        )
        assert self.num_computed_tokens <= len(self.pages) * page_size, (
            f"request {name}: {self.num_computed_tokens} computed tokens in {len(self.pages)} pages"
        )
        assert len(set(self.pages)) == len(self.pages), f"request {name} holds a page twice"
        assert self.num_answer_tokens < max(1, self.request.max_tokens), (
            f"request {name} runs past its end"
        )
        assert self.num_cached_tokens < self.num_prompt_tokens, (
            f"request {name}: {self.num_cached_tokens} of {self.num_prompt_tokens} tokens cached"
        )
