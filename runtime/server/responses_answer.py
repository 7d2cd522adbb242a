"""The objects that answer /v1/responses, and the events of its stream, in order."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal
from uuid import uuid4

from runtime.engine.request import SamplingParams
from runtime.generation import Generation, TextDelta
from runtime.server.message_reader import MessageReader
from runtime.server.responses_schema import ResponseBody

Item = dict[str, Any]
Event = dict[str, Any]
_KINDS: dict[str, tuple[str, str, str]] = {
    "reasoning_content": ("reasoning", "reasoning_text", "rs"),
    "content": ("message", "output_text", "msg"),
}
"""By field of a chat message: the type of its item, of its part, and the prefix of its id."""


class ResponseAnswer:
    """One response. Its items are made as their text comes: thoughts, then the message."""

    def __init__(
        self,
        model_name: str,
        body: ResponseBody,
        sampling: SamplingParams,
        generation: Generation,
        reader: MessageReader,
    ) -> None:
        self._generation = generation
        self._reader = reader
        self._number = 0
        self._items: list[Item] = []
        self._field = ""
        """Of the item that is being written."""
        self._fixed = {
            "id": f"resp_{uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model_name,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
            "store": False,
            "temperature": sampling.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": sampling.top_p,
            "truncation": "disabled",
        }

    def whole(self, deltas: Sequence[TextDelta]) -> dict[str, Any]:
        """The one object that is no stream."""
        for _ in self.begin():
            pass
        for delta in deltas:
            for _ in self.feed(delta):
                pass
        return self._response(*self._status())

    def begin(self) -> Iterator[Event]:
        """Before the first token."""
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=self._response("in_progress"))

    def feed(self, delta: TextDelta) -> Iterator[Event]:
        """What a token brings; after the last one, the end."""
        fields = self._reader.feed(delta)
        for field in _KINDS:
            if fields.get(field) or (field == "content" and field in fields and self._is_open()):
                yield from self._write(field, fields[field])
        if delta.finish_reason is not None:
            if not self._is_open():
                yield from self._write("content", "")
            yield from self._close()
            status, reason = self._status()
            yield self._event(f"response.{status}", response=self._response(status, reason))

    def fail(self, message: str, code: str | None) -> Event:
        """In the place of the end."""
        response = self._response("failed")
        response["error"] = {"code": code or "server_error", "message": message}
        return self._event("response.failed", response=response)

    def _is_open(self) -> bool:
        return self._field == "content"

    def _write(self, field: str, text: str) -> Iterator[Event]:
        if self._field != field:
            yield from self._close()
            yield from self._open(field)
        item, part = self._items[-1], self._items[-1]["content"][0]
        part["text"] += text
        place = {"item_id": item["id"], **self._place()}
        extra: Event = {"logprobs": []} if field == "content" else {}
        yield self._event(f"response.{part['type']}.delta", **place, delta=text, **extra)

    def _open(self, field: str) -> Iterator[Event]:
        kind, part_kind, prefix = _KINDS[field]
        self._field = field
        item: Item = {"id": f"{prefix}_{uuid4().hex}", "type": kind, "status": "in_progress"}
        part: Item = {"type": part_kind, "text": ""}
        if field == "content":
            item["role"] = "assistant"
            part |= {"annotations": [], "logprobs": []}
        else:
            item["summary"] = []
        self._items.append({**item, "content": [part]})
        index = len(self._items) - 1
        added = {**item, "content": []}
        yield self._event("response.output_item.added", output_index=index, item=added)
        place = {"item_id": item["id"], **self._place()}
        yield self._event("response.content_part.added", **place, part=dict(part))

    def _close(self) -> Iterator[Event]:
        if not self._field:
            return
        item = self._items[-1]
        part = item["content"][0]
        item["status"] = "completed" if self._reader.finish_reason != "length" else "incomplete"
        place = {"item_id": item["id"], **self._place()}
        extra: Event = {"logprobs": []} if self._is_open() else {}
        self._field = ""
        yield self._event(f"response.{part['type']}.done", **place, text=part["text"], **extra)
        yield self._event("response.content_part.done", **place, part=dict(part))
        index = len(self._items) - 1
        yield self._event("response.output_item.done", output_index=index, item=dict(item))

    def _place(self) -> dict[str, int]:
        return {"output_index": len(self._items) - 1, "content_index": 0}

    def _event(self, name: str, **fields: Any) -> Event:
        number, self._number = self._number, self._number + 1
        return {"type": name, "sequence_number": number, **fields}

    def _status(self) -> tuple[Literal["completed", "incomplete"], str | None]:
        if self._reader.finish_reason == "length":
            return "incomplete", "max_output_tokens"
        return "completed", None

    def _response(self, status: str, reason: str | None = None) -> dict[str, Any]:
        return {
            **self._fixed,
            "status": status,
            "error": None,
            "incomplete_details": None if reason is None else {"reason": reason},
            "output": [dict(item) for item in self._items],
            "usage": None if status == "in_progress" else self._usage(),
        }

    def _usage(self) -> dict[str, Any]:
        generation = self._generation
        prompt, answer = generation.num_prompt_tokens, generation.num_answer_tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": generation.num_cached_tokens},
            "output_tokens": answer,
            "output_tokens_details": {"reasoning_tokens": self._reader.num_reasoning_tokens},
            "total_tokens": prompt + answer,
        }
