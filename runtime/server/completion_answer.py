"""The objects that answer a plain completion: one whole, or chunks of a stream."""

import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from runtime.generation import Generation, TextDelta
from runtime.server.answers import Chunk
from runtime.server.chat_answer import token_ids_of
from runtime.server.logprobs import CompletionLogprobs, prompt_logprobs
from runtime.server.schemas import CompletionBody
from runtime.server.sse_template import TEXT, EventTemplate
from runtime.server.state import usage_of
from runtime.server.timings import Timings
from runtime.service import GenerationService


class CompletionAnswer:
    """One answer, whose objects share an id. Choices are counted prompt by prompt.

    prompts: of each choice, its text and token ids.
    """

    def __init__(
        self,
        service: GenerationService,
        body: CompletionBody,
        prompts: Sequence[tuple[str, Sequence[int]]],
        generations: Sequence[Generation],
    ) -> None:
        self._tokenizer = service.tokenizer
        self._body = body
        self._prompts = prompts
        self._generations = generations
        as_ids = bool(body.return_tokens_as_token_ids)
        self._logprobs = [CompletionLogprobs(service.tokenizer, as_ids) for _ in generations]
        self._timings = [Timings(generation) for generation in generations]
        self._opened = [False] * len(generations)
        self._head = {
            "id": f"cmpl-{uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.model_name,
        }
        self._templates = [
            EventTemplate(self._chunk({"index": index, "text": TEXT, **_NOTHING}))
            for index in range(len(generations) if body.stream else 0)
        ]
        varies = (body.return_token_ids, body.timings_per_token, body.wants_usage_always)
        self._has_templates = body.logprobs is None and not any(varies)

    def whole(self, answers: Sequence[Sequence[TextDelta]]) -> Chunk:
        """The one object that is no stream."""
        choices = [self._choice(index, deltas, True) for index, deltas in enumerate(answers)]
        answer: Chunk = {**self._head, "choices": choices, "usage": self._usage()}
        if self._body.timings_per_token:
            self._timings[0].note()
            answer["timings"] = self._timings[0].as_object()
        return answer

    def chunks(self, index: int, delta: TextDelta) -> list[Chunk | bytes]:
        """The chunk of one token; a choice's first one holds its prompt too, where that is asked
        for."""
        opens, self._opened[index] = not self._opened[index], True
        if self._has_templates and not opens and delta.finish_reason is None:
            return [self._templates[index].of(delta.text)]
        chunk = self._chunk(self._choice(index, [delta], opens))
        if self._body.timings_per_token:
            self._timings[index].note()
            chunk["timings"] = self._timings[index].as_object()
        return [chunk]

    def usage_chunk(self) -> Chunk | None:
        """The chunk before the end of the stream, if it was asked for."""
        if not self._body.wants_usage:
            return None
        return {**self._head, "choices": [], "usage": self._usage()}

    def _chunk(self, choice: dict[str, Any]) -> Chunk:
        chunk: Chunk = {**self._head, "choices": [choice]}
        if self._body.wants_usage:
            chunk["usage"] = self._usage() if self._body.wants_usage_always else None
        return chunk

    def _choice(self, index: int, deltas: Sequence[TextDelta], opens: bool) -> dict[str, Any]:
        body, (text, tokens) = self._body, self._prompts[index]
        echoes = bool(body.echo) and opens
        found = self._generations[index].prompt_logprobs or ()
        logprobs = self._logprobs[index]
        choice: dict[str, Any] = {
            "index": index,
            "text": (text if echoes else "") + "".join(delta.text for delta in deltas),
            "logprobs": None,
            "finish_reason": deltas[-1].finish_reason,
        }
        if body.logprobs is not None:
            if echoes:
                logprobs.add_prompt(tokens, found)
            choice["logprobs"] = logprobs.of(deltas)
        if body.prompt_logprobs is not None and opens:
            choice["prompt_logprobs"] = prompt_logprobs(self._tokenizer, tokens, found)
        if body.return_token_ids:
            choice["token_ids"] = token_ids_of(deltas)
            if opens:
                choice["prompt_token_ids"] = list(tokens)
        return choice

    def _usage(self) -> dict[str, Any]:
        return usage_of(self._generations, self._body.n or 1)


_NOTHING: dict[str, None] = {"logprobs": None, "finish_reason": None}
