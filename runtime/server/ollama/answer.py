"""Ollama's answer objects; durations in nanoseconds."""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from runtime.generation import Generation, TextDelta
from runtime.server.logprobs import chat_logprobs
from runtime.server.message_reader import MessageReader
from runtime.service import GenerationService


def created_at() -> str:
    """Now, as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class Answer:
    """The objects of one answer: one per token that has text, and one with the figures."""

    def __init__(
        self,
        service: GenerationService,
        generation: Generation,
        reader: MessageReader,
        is_chat: bool,
        arrived: float,
        load_seconds: float,
    ) -> None:
        """`reader` tells thoughts from text. `arrived`: the time.monotonic() of the request."""
        self._service = service
        self._generation = generation
        self._reader = reader
        self._is_chat = is_chat
        self._arrived = arrived
        self._load_seconds = load_seconds

    def line(self, delta: TextDelta) -> dict[str, Any] | None:
        """The object of one delta of a stream; None for one that brings nothing."""
        is_last = delta.finish_reason is not None
        fields = self._reader.feed(delta)
        fields.pop("tool_calls", None)
        if is_last:
            # Ollama's clients take calls whole.
            fields["tool_calls"] = self._reader.message().get("tool_calls")
        if not (any(fields.values()) or delta.logprobs or is_last):
            return None
        return self._object(fields, [delta], is_last)

    def whole(self, deltas: Sequence[TextDelta]) -> dict[str, Any]:
        """The one object of an answer that is not streamed."""
        for delta in deltas:
            self._reader.feed(delta)
        return self._object(self._reader.message(), deltas, is_last=True)

    def _object(
        self, fields: dict[str, Any], deltas: Sequence[TextDelta], is_last: bool
    ) -> dict[str, Any]:
        head = {"model": self._service.model_name, "created_at": created_at()}
        answer: dict[str, Any] = {**head, **self._content(fields), "done": is_last}
        if any(delta.logprobs for delta in deltas):
            answer["logprobs"] = self._logprobs(deltas)
        if is_last:
            answer |= {"done_reason": deltas[-1].finish_reason, **self._figures()}
        return answer

    def _content(self, fields: dict[str, Any]) -> dict[str, Any]:
        text, thoughts = fields.get("content") or "", fields.get("reasoning_content")
        thinking = {"thinking": thoughts} if thoughts else {}
        if self._is_chat:
            message = {"role": "assistant", "content": text, **thinking}
            return {"message": message | _calls_of(fields)}
        return {"response": text, **thinking}

    def _logprobs(self, deltas: Sequence[TextDelta]) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = chat_logprobs(self._service.tokenizer, deltas)["content"]
        return entries

    def _figures(self) -> dict[str, int]:
        now, generation = time.monotonic(), self._generation
        first = now if generation.first_token is None else generation.first_token
        return {
            "total_duration": _nanoseconds(now - self._arrived),
            "load_duration": _nanoseconds(self._load_seconds),
            "prompt_eval_count": generation.num_prompt_tokens,
            "prompt_eval_duration": _nanoseconds(first - generation.started),
            "eval_count": generation.num_answer_tokens,
            "eval_duration": _nanoseconds(now - first),
        }


def _calls_of(fields: dict[str, Any]) -> dict[str, Any]:
    """Whole calls as Ollama writes them, their arguments as objects. One that was cut off is given
    as text, since nobody should carry it out."""
    calls, rests = [], [fields.get("content") or ""]
    for call in fields.get("tool_calls") or ():
        function = call["function"]
        try:
            arguments = json.loads(function["arguments"] or "{}")
        except ValueError:
            rests.append(f"{function['name']}{function['arguments']}")
        else:
            calls.append({"function": {"name": function["name"], "arguments": arguments}})
    found: dict[str, Any] = {"tool_calls": calls} if calls else {}
    return found | ({"content": "".join(rests)} if len(rests) > 1 else {})


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
