"""The objects that answer /v1/responses, and the events of its stream, in order."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal
from uuid import uuid4

from runtime.engine.request import SamplingParams
from runtime.generation import Generation, TextDelta
from runtime.server.message_reader import MessageReader
from runtime.server.responses_items import CallItem, Item, OpenItem, Step, TextItem
from runtime.server.responses_schema import ResponseBody

Event = dict[str, Any]


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
        self._open: OpenItem | None = None
        self._fixed = {
            "id": f"resp_{uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model_name,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
            "store": False,
            "temperature": sampling.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
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
        if fields.get("reasoning_content"):
            yield from self._write("reasoning_content", fields["reasoning_content"])
        if fields.get("content") or ("content" in fields and self._is_at("content")):
            yield from self._write("content", fields["content"])
        for call in fields.get("tool_calls", ()):
            yield from self._write(call["index"], call["function"]["arguments"], call)
        if delta.finish_reason is not None:
            if all(item["type"] == "reasoning" for item in self._items):
                yield from self._write("content", "")
            yield from self._close()
            status, reason = self._status()
            yield self._event(f"response.{status}", response=self._response(status, reason))

    def fail(self, message: str, code: str | None) -> Event:
        """In the place of the end."""
        response = self._response("failed")
        response["error"] = {"code": code or "server_error", "message": message}
        return self._event("response.failed", response=response)

    def _is_at(self, key: str | int) -> bool:
        return self._open is not None and self._open.key == key

    def _write(
        self, key: str | int, text: str, call: dict[str, Any] | None = None
    ) -> Iterator[Event]:
        """`call`: the piece of a function call that this is of."""
        if not self._is_at(key):
            yield from self._close()
            self._open = TextItem(str(key)) if call is None else CallItem(call)
            self._items.append(self._open.item)
            yield from self._told(self._open.begin())
        assert self._open is not None
        yield from self._told(self._open.write(text))

    def _close(self) -> Iterator[Event]:
        if self._open is None:
            return
        ended = self._reader.finish_reason != "length"
        self._open.item["status"] = "completed" if ended else "incomplete"
        yield from self._told(self._open.end())
        self._open = None

    def _told(self, steps: Iterator[Step]) -> Iterator[Event]:
        place = {"output_index": len(self._items) - 1}
        for name, fields in steps:
            named = {} if "item" in fields else {"item_id": self._items[-1]["id"]}
            yield self._event(f"response.{name}", **named, **place, **fields)

    def _event(self, name: str, /, **fields: Any) -> Event:
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
