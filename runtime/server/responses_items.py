"""The items of a response's output while they are being written, and the events that tell of it.

Events are pairs: a name without `response.`, and its fields without those of its place.
"""

from collections.abc import Iterator
from typing import Any, Protocol
from uuid import uuid4

Item = dict[str, Any]
Step = tuple[str, dict[str, Any]]


class OpenItem(Protocol):
    """key: of the field of a chat's message, or the number of the call, that it is written from."""

    key: str | int
    item: Item

    def begin(self) -> Iterator[Step]: ...

    def write(self, text: str) -> Iterator[Step]: ...

    def end(self) -> Iterator[Step]: ...


class TextItem:
    """A message, or thoughts: an item with one part."""

    def __init__(self, key: str) -> None:
        self.key: str | int = key
        is_message = key == "content"
        name = "msg" if is_message else "rs"
        kind = "message" if is_message else "reasoning"
        self._kind = "output_text" if is_message else "reasoning_text"
        self._extra: dict[str, Any] = {"logprobs": []} if is_message else {}
        self._part: Item = {"type": self._kind, "text": "", **self._extra}
        own: Item = {"role": "assistant"} if is_message else {"summary": []}
        if is_message:
            self._part["annotations"] = []
        self.item: Item = {
            "id": f"{name}_{uuid4().hex}",
            "type": kind,
            "status": "in_progress",
            **own,
            "content": [self._part],
        }

    def begin(self) -> Iterator[Step]:
        yield "output_item.added", {"item": {**self.item, "content": []}}
        yield "content_part.added", {"content_index": 0, "part": dict(self._part)}

    def write(self, text: str) -> Iterator[Step]:
        self._part["text"] += text
        yield f"{self._kind}.delta", {"content_index": 0, "delta": text, **self._extra}

    def end(self) -> Iterator[Step]:
        text = self._part["text"]
        yield f"{self._kind}.done", {"content_index": 0, "text": text, **self._extra}
        yield "content_part.done", {"content_index": 0, "part": dict(self._part)}
        yield "output_item.done", {"item": dict(self.item)}


class CallItem:
    """A function call. `call`: its first piece, as in a chunk of a chat."""

    def __init__(self, call: dict[str, Any]) -> None:
        self.key: str | int = call["index"]
        self.item: Item = {
            "id": f"fc_{uuid4().hex}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": call["id"],
            "name": call["function"]["name"],
            "arguments": "",
        }

    def begin(self) -> Iterator[Step]:
        yield "output_item.added", {"item": dict(self.item)}

    def write(self, text: str) -> Iterator[Step]:
        if text:
            self.item["arguments"] += text
            yield "function_call_arguments.delta", {"delta": text}

    def end(self) -> Iterator[Step]:
        written = {name: self.item[name] for name in ("name", "arguments")}
        yield "function_call_arguments.done", written
        yield "output_item.done", {"item": dict(self.item)}
