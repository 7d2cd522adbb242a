"""Text in, text out, over one engine: what the server, the command line and the API share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol
from uuid import uuid4

from runtime.engine.batch import Executor
from runtime.engine.request import (
    Pooling,
    Request,
    RequestError,
    SamplingParams,
    TokenEvent,
)
from runtime.engine.stats import EngineStats
from runtime.generation import Generation, GenerationParams
from runtime.text.template import ChatTemplate
from runtime.text.tokenizer import Tokenizer


class EngineHandle(Protocol):
    """What a service needs of an engine's thread."""

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered, now or once the engine is back; False after its end."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether a request would be run now."""
        ...

    def submit(self, request: Request, on_event: Callable[[TokenEvent], None]) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def stats(self) -> EngineStats: ...

    def seconds_without_progress(self) -> float: ...

    def shutdown(self, drain_seconds: float = 30.0) -> bool: ...


class GenerationService:
    """One model, ready to answer. Every method may be called from any thread.

    max_positions: tokens of prompt and answer together that are served at most, see
        `usable_positions`.
    sampling_defaults: fields of SamplingParams that the model's makers recommend.
    """

    def __init__(
        self,
        engine: EngineHandle,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        model_name: str,
        max_positions: int,
        sampling_defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.template = template
        self.model_name = model_name
        self.max_positions = max_positions
        self.sampling_defaults = dict(sampling_defaults or {})

    def encode(
        self, text: str, *, add_special_tokens: bool = True, keep_last: int | None = None
    ) -> list[int]:
        """Prompt tokens of plain text; RequestError for text that cannot fit the context.

        keep_last: only so many tokens of its end are kept, whatever its length.
        """
        least = self.tokenizer.least_tokens(text)
        if keep_last is None and least >= self.max_positions:
            raise self._too_long(f"at least {least}")
        tokens = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return tokens if keep_last is None else tokens[-keep_last:]

    def _tokens_of_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """How each word is written, at the beginning of a text and after a space."""
        texts = [text for word in words for text in (word.lstrip(), f" {word.lstrip()}")]
        found = (self.tokenizer.encode(text, add_special_tokens=False) for text in texts)
        return tuple(dict.fromkeys(tuple(tokens) for tokens in found if tokens))

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        keep_last: int | None = None,
    ) -> list[int]:
        """Prompt tokens of a conversation; RequestError where there is no template or it refuses.

        `variables` are the template's own, `enable_thinking` for example. See `ChatTemplate.render`
        and `encode` for the rest.

        The template writes the beginning-of-sequence token itself where the model wants one.
        """
        if self.template is None:
            raise RequestError(
                f"model '{self.model_name}' has no chat template; use /v1/completions", "messages"
            )
        text = self.template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final=continue_final,
            variables=variables,
        )
        return self.encode(text, add_special_tokens=False, keep_last=keep_last)

    def submit(self, prompt_tokens: Sequence[int], params: GenerationParams) -> Generation:
        """Start an answer. RequestError where it can never be given, or the queue is full."""
        room = self.max_positions - len(prompt_tokens)
        if room < 1:
            raise self._too_long(str(len(prompt_tokens)))
        if params.max_tokens is not None and params.max_tokens > room:
            raise RequestError(
                f"the prompt has {len(prompt_tokens)} tokens and max_tokens is "
                f"{params.max_tokens}, together {len(prompt_tokens) + params.max_tokens}, but this "
                f"model's maximum context length is {self.max_positions} tokens",
                "max_tokens",
                "context_length_exceeded",
            )
        sampling = params.sampling
        if params.bad_words:
            sampling = replace(sampling, bad_words=self._tokens_of_words(params.bad_words))
        endings = self.tokenizer.ending_ids
        if params.ignore_eos and params.constraint is None:
            endings = frozenset()
        request = Request(
            request_id=uuid4().hex,
            prompt_tokens=tuple(prompt_tokens),
            max_tokens=room if params.max_tokens is None else params.max_tokens,
            sampling=sampling,
            stop_token_ids=endings | params.stop_token_ids,
            min_tokens=params.min_tokens,
            priority=params.priority,
            cache_salt=params.cache_salt,
            constraint=params.constraint,
            queue_seconds=params.queue_seconds,
            deadline_seconds=params.deadline_seconds,
        )
        generation = Generation(
            request.request_id,
            len(prompt_tokens),
            replace(params, max_tokens=request.max_tokens),
            self.tokenizer,
            self.engine.abort,
            self.model_name,
        )
        self.engine.submit(request, generation.receive)
        return generation

    def embed(
        self, tokens: Sequence[int], pooling: Pooling, on_end: Callable[[TokenEvent], None]
    ) -> str:
        """Start an embedding; `on_end` is called once, on the engine's thread. The id that
        `engine.abort` takes. RequestError where it can never be given, or the queue is full."""
        if len(tokens) > self.max_positions:
            raise self._too_long(str(len(tokens)))
        name = uuid4().hex
        request = Request(name, tuple(tokens), 0, SamplingParams(temperature=0.0), pooling=pooling)
        self.engine.submit(request, on_end)
        return name

    def _too_long(self, tokens: str) -> RequestError:
        return RequestError(
            f"the prompt has {tokens} tokens, but this model's maximum context length is "
            f"{self.max_positions} tokens and must leave room for an answer",
            "prompt",
            "context_length_exceeded",
        )


def usable_positions(executor: Executor) -> int:
    """The longest context that both the model and the page pool hold, in tokens."""
    pool_tokens = (executor.num_pages - 1) * executor.page_size
    return min(executor.max_positions, pool_tokens)
