"""One answer being generated: token events in, text deltas out."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from runtime.engine.constraint import Constraint
from runtime.engine.request import FinishReason, SamplingParams, TokenEvent, TokenLogprobs
from runtime.text.detokenizer import Detokenizer, TokenTexts
from runtime.text.stop import StopMatcher


@dataclass(frozen=True)
class GenerationParams:
    """What is asked of one answer.

    max_tokens: None means all that the context leaves.
    stop: strings that end the answer; neither they nor anything after them is given out.
    include_stop: what ended the answer, a string or a token, is given out as text too.
    min_tokens: neither ending tokens nor stop strings end the answer before that many tokens.
    ignore_eos: the model's own ending tokens do not end the answer; `stop_token_ids` still do.
    priority, cache_salt, constraint, queue_seconds, deadline_seconds: see `Request`. With a
    constraint, ending tokens end the answer in any case: they come only where its text is complete.
    """

    max_tokens: int | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    bad_words: tuple[str, ...] = ()
    include_stop: bool = False
    min_tokens: int = 0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    priority: int = 0
    cache_salt: str = ""
    constraint: Constraint | None = None
    queue_seconds: float | None = None
    deadline_seconds: float | None = None


@dataclass(slots=True)
class TextDelta:
    """What one token brought. `text` may be empty; the last delta has a finish_reason.

    token_id: None where the end came without a token, or the token only ended the answer.
    ending_id: the token that only ended the answer.
    finish_reason: "stop" for ending tokens and stop strings alike.
    error: one sentence, with finish_reason "error" only.
    """

    text: str
    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    ending_id: int | None = None


class Generation:
    """Deltas of one answer, in order. One consumer: `for delta in generation`, or `on_news` and
    `poll` where blocking is not allowed. Detokenizing happens on the consumer's thread."""

    def __init__(
        self,
        request_id: str,
        num_prompt_tokens: int,
        params: GenerationParams,
        tokenizer: TokenTexts,
        abort: Callable[[str], None],
        model_name: str = "",
    ) -> None:
        self.request_id = request_id
        self.num_prompt_tokens = num_prompt_tokens
        self.model_name = model_name
        self.started = time.monotonic()
        self.queue_seconds = 0.0
        """How long it waited for its first step, once that was done."""
        self.first_token: float | None = None
        """When it was given out; `time.monotonic`, as `started` is."""
        self.max_tokens = params.max_tokens or 0
        self.num_answer_tokens = 0
        """Tokens sampled so far, the ending one included."""
        self.num_cached_tokens = 0
        """Tokens of the prompt that were not computed anew."""
        self.prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
        """Of every prompt token but the first, with the first delta, where they are asked for."""
        self.sets_time = (params.queue_seconds or params.deadline_seconds) is not None
        """Whether the request itself says how long it may take."""
        self._min_tokens = params.min_tokens
        self._include_stop = params.include_stop
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens)
        self._matcher = StopMatcher(params.stop, included=params.include_stop)
        self._abort = abort
        self._events: deque[TokenEvent] = deque()
        self._notify: Callable[[], None] = _nobody
        self.finish_reason: FinishReason | None = None

    def receive(self, event: TokenEvent) -> None:
        """Called on the engine's thread; only queues."""
        self._events.append(event)
        self._notify()

    def on_news(self, notify: Callable[[], None]) -> None:
        """`notify` is called, on the engine's thread, whenever `poll` has something to give."""
        # In this order, and `receive` in the other: either side sees what the other one did.
        self._notify = notify
        if self._events:
            notify()

    def poll(self) -> list[TextDelta]:
        """The deltas that are there by now; does not wait."""
        deltas = []
        while self._events and self.finish_reason is None:
            deltas.append(self._delta(self._events.popleft()))
        return deltas

    def __iter__(self) -> Iterator[TextDelta]:
        """Waits for each delta; leaving the loop early does not cancel."""
        bell = threading.Event()
        self.on_news(bell.set)
        while self.finish_reason is None:
            while not self._events:
                bell.wait()
                bell.clear()
            yield self._delta(self._events.popleft())

    def cancel(self) -> None:
        """Stop generating and free the pages; harmless after the end. Deltas end with "abort"."""
        if self.finish_reason is None:
            self._abort(self.request_id)

    def _delta(self, event: TokenEvent) -> TextDelta:
        if event.prompt_logprobs is not None:
            self.prompt_logprobs = event.prompt_logprobs
        self.num_cached_tokens = max(self.num_cached_tokens, event.num_cached_tokens)
        if event.token_id is not None:
            self.num_answer_tokens += 1
        self.queue_seconds = event.queue_seconds or self.queue_seconds
        reason, token_id, ending_id = event.finish_reason, event.token_id, None
        if reason == "stop":
            token_id, ending_id = None, token_id
        shown = ending_id if self._include_stop and token_id is None else token_id
        text = "" if shown is None else self._text_of(shown)
        if self._matcher.matched is not None:
            if reason is None:
                self._abort(self.request_id)
            reason = "stop"
        elif reason is not None:
            text += self._matcher.feed(self._detokenizer.finish())
            text += self._matcher.finish()
        self.finish_reason = reason
        logprobs = None if token_id is None else event.logprobs
        return TextDelta(text, token_id, logprobs, reason, event.error, ending_id)

    def _text_of(self, token_id: int) -> str:
        text = self._detokenizer.feed(token_id)
        if self.num_answer_tokens < self._min_tokens:
            return text
        return self._matcher.feed(text)


def _nobody() -> None:
    """Waits for news."""
