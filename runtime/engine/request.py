"""What the engine is asked, and what it answers with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from runtime.engine.constraint import Constraint

FinishReason = Literal["stop", "length", "abort", "error", "timeout"]
"""abort: the client wants no more; error: the model, or what chooses tokens, failed; timeout: a
time that the request or the server sets was over."""
Pooling = Literal["mean", "last"]
"""Which of the prompt's hidden rows make an embedding: the mean of all, or the last one."""


class RequestError(ValueError):
    """A request that cannot be honoured; the message names the field and both numbers.

    `param` is the name of the field, `code` a machine-readable word such as
    `context_length_exceeded` or `queue_full`. `retry_after_seconds`: when the same is likely to be
    honoured, where that is known.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.param = param
        self.code = code


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. Temperature 0 is exact greedy: argmax, lowest id on ties.

    Order of operations: penalties and bias on the logits, then temperature, then top_k, top_p and
    min_p, then a draw. Penalties count prompt and answer tokens as vLLM does: `repetition` both,
    `presence` and `frequency` the answer only. `logprobs` asks for that many alternatives (0 asks
    for the chosen token's alone); they are of the raw logits, before penalties and temperature.
    `prompt_logprobs` asks the same of every token of the prompt but the first.

    allowed_token_ids: no other token is chosen; None allows all. bad_words: sequences of tokens
    that the answer does not hold; the last token of one is not chosen after all its others.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Request:
    """One sequence to continue. Stop strings are the text side's business: it aborts."""

    request_id: str
    prompt_tokens: tuple[int, ...]
    max_tokens: int
    """0 only with `prompt_logprobs` or `pooling`: the prompt is read and nothing is sampled."""
    sampling: SamplingParams = SamplingParams()
    stop_token_ids: frozenset[int] = frozenset()
    """Ending tokens (end-of-sequence ids included); the one that ended it is still reported."""
    min_tokens: int = 0
    """Ending tokens are not sampled before this many answer tokens."""
    priority: int = 0
    """Smaller ones are served first, and preempted last; equal ones in order of arrival."""
    cache_salt: str = ""
    """Only requests of the same salt share what is computed."""
    queue_seconds: float | None = None
    """It ends with "timeout" if it has not started by then; at most what EngineOptions says."""
    deadline_seconds: float | None = None
    """It ends with "timeout" if it has not ended by then, counted from its arrival; at most what
    EngineOptions says."""
    constraint: Constraint | None = None
    """What the text must be. Its grammar has the last word: it allows ending tokens where the text
    may end, and where nothing may follow the answer ends, whatever `min_tokens` is."""
    pooling: Pooling | None = None
    """An embedding is wanted in place of an answer."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of probabilities; `top` is sorted, most probable first."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class TokenEvent:
    """One step's news of one request: a token, its end, or both.

    Nobody changes one; it is not frozen because one is made for each token, and a frozen dataclass
    takes three times as long.
    """

    request_id: str
    token_id: int | None
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    error: str | None = None
    """One sentence, with finish_reason "error" or "timeout" only."""
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    """Of every prompt token but the first, in order; only in the request's first event, and only
    if asked for."""
    num_cached_tokens: int = 0
    """Prompt tokens that were found computed in the prefix cache; the same in every event."""
    queue_seconds: float = 0.0
    """From the engine's acceptance to the first step; only with the first token."""
    embedding: bytes | None = None
    """What `pooling` gave, float32 [hidden_size] in the machine's order, with the one event of a
    request that asks for it."""
