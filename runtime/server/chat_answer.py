"""The objects that answer a chat: one whole, or chunks of a stream."""

import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from runtime.generation import Generation, TextDelta
from runtime.server.answers import Chunk
from runtime.server.logprobs import chat_logprobs, prompt_logprobs
from runtime.server.message_reader import MessageReader
from runtime.server.schemas import ChatBody
from runtime.server.sse_template import TEXT, EventTemplate
from runtime.server.state import usage_of
from runtime.server.timings import Timings
from runtime.service import GenerationService


class ChatAnswer:
    """One answer, whose objects share an id. `prompt` is its token ids; readers: one per choice."""

    def __init__(
        self,
        service: GenerationService,
        body: ChatBody,
        prompt: Sequence[int],
        generations: Sequence[Generation],
        readers: Sequence[MessageReader],
    ) -> None:
        self._tokenizer = service.tokenizer
        self._body = body
        self._prompt = prompt
        self._generations = generations
        self._readers = readers
        self._timings = [Timings(generation) for generation in generations]
        self._opened = [False] * len(generations)
        self._head = {
            "id": f"chatcmpl-{uuid4().hex}",
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": int(time.time()),
            "model": service.model_name,
        }
        self._templates = [
            EventTemplate(self._chunk(index, {"content": TEXT}))
            for index in range(len(generations) if body.stream else 0)
        ]
        varies = (body.logprobs, body.return_token_ids, body.timings_per_token)
        self._has_templates = not (any(varies) or body.wants_usage_always)

    def whole(self, answers: Sequence[Sequence[TextDelta]]) -> Chunk:
        """The one object that is no stream."""
        choices = [self._choice(index, deltas) for index, deltas in enumerate(answers)]
        answer: Chunk = {**self._head, "choices": choices, "usage": self._usage()}
        if self._body.prompt_logprobs is not None:
            found = self._generations[0].prompt_logprobs or ()
            answer["prompt_logprobs"] = prompt_logprobs(self._tokenizer, self._prompt, found)
        if self._body.return_token_ids:
            answer["prompt_token_ids"] = list(self._prompt)
        if self._body.timings_per_token:
            self._timings[0].note()
            answer["timings"] = self._timings[0].as_object()
        return answer

    def chunks(self, index: int, delta: TextDelta) -> list[Chunk | bytes]:
        """The chunks of one token, after the one that opens the choice."""
        fields = self._readers[index].feed(delta)
        if self._opened[index] and self._has_templates and delta.finish_reason is None:
            content = fields.get("content")
            if len(fields) == 1 and isinstance(content, str):
                return [self._templates[index].of(content)]
        found: list[Chunk | bytes] = []
        if not self._opened[index]:
            self._opened[index] = True
            found.append(self._chunk(index, {"role": "assistant", "content": ""}, opens=True))
        if delta.token_id is None and not fields.get("content", "x"):
            del fields["content"]
        return [*found, self._chunk(index, fields, delta)]

    def usage_chunk(self) -> Chunk | None:
        """The chunk before the end of the stream, if it was asked for."""
        if not self._body.wants_usage:
            return None
        return {**self._head, "choices": [], "usage": self._usage()}

    def _choice(self, index: int, deltas: Sequence[TextDelta]) -> dict[str, Any]:
        reader = self._readers[index]
        for delta in deltas:
            reader.feed(delta)
        choice = {
            "index": index,
            "message": {"role": "assistant", **reader.message(), "refusal": None},
            "logprobs": self._logprobs(deltas),
            "finish_reason": reader.finish_reason,
        }
        if self._body.return_token_ids:
            choice["token_ids"] = token_ids_of(deltas)
        return choice

    def _chunk(
        self,
        index: int,
        fields: dict[str, Any],
        delta: TextDelta | None = None,
        *,
        opens: bool = False,
    ) -> Chunk:
        ends = delta is not None and delta.finish_reason is not None
        choice = {
            "index": index,
            "delta": fields,
            "logprobs": None if delta is None else self._logprobs([delta]),
            "finish_reason": self._readers[index].finish_reason if ends else None,
        }
        chunk: Chunk = {**self._head, "choices": [choice]}
        if self._body.return_token_ids:
            choice["token_ids"] = [] if delta is None else token_ids_of([delta])
            if opens:
                chunk["prompt_token_ids"] = list(self._prompt)
        if self._body.wants_usage:
            chunk["usage"] = self._usage() if self._body.wants_usage_always else None
        if self._body.timings_per_token and delta is not None:
            self._timings[index].note()
            chunk["timings"] = self._timings[index].as_object()
        return chunk

    def _usage(self) -> dict[str, Any]:
        thoughts = sum(reader.num_reasoning_tokens for reader in self._readers)
        return usage_of(self._generations, self._body.n or 1, thoughts)

    def _logprobs(self, deltas: Sequence[TextDelta]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        as_ids = bool(self._body.return_tokens_as_token_ids)
        return chat_logprobs(self._tokenizer, deltas, as_ids=as_ids)


def token_ids_of(deltas: Sequence[TextDelta]) -> list[int]:
    """The tokens of an answer, the one that only ended it included."""
    ids = (delta.ending_id if delta.token_id is None else delta.token_id for delta in deltas)
    return [id_ for id_ in ids if id_ is not None]
