"""The input of POST /v1/responses as the messages of a chat."""

import json
from collections.abc import Mapping
from typing import Any

from runtime.engine.request import RequestError
from runtime.server.messages import Message, known_role
from runtime.server.refused import unsupported
from runtime.server.responses_schema import TEXT_PARTS, ResponseBody
from runtime.text.template import ChatTemplate


def messages_of_input(body: ResponseBody, template: ChatTemplate | None) -> list[Message]:
    """The conversation, in roles that the template knows. RequestError for the first item that has
    no place in one of text."""
    messages = [] if body.instructions is None else [_message("system", body.instructions)]
    if isinstance(body.input, str):
        return [*messages, _message("user", body.input)]
    if not isinstance(body.input, list) or not body.input:
        raise RequestError("input must be a string or a list of items", "input")
    turns = _Turns(messages, template)
    for index, item in enumerate(body.input):
        turns.add(f"input[{index}]", item)
    return turns.messages


class _Turns:
    """What an answer consists of are several items here, and one message in a chat: thoughts, a
    text, and calls."""

    def __init__(self, messages: list[Message], template: ChatTemplate | None) -> None:
        self.messages = messages
        self._template = template
        self._is_open = False
        """Whether the last message is an answer that what comes next may belong to."""
        self._calls: set[str] = set()

    def add(self, where: str, item: object) -> None:
        if not isinstance(item, dict):
            raise _no_item(where, type(item).__name__)
        kind = item.get("type", "message")
        if kind == "message":
            role = known_role(_string(where, item, "role"), where, "input", self._template)
            self._text(role, _text(f"{where}.content", item.get("content")))
        elif kind == "reasoning":
            shown = item.get("content") or item.get("summary") or ""
            self._answer()["reasoning_content"] = _text(f"{where}.content", shown)
        elif kind == "function_call":
            call = _call(where, item)
            self._answer().setdefault("tool_calls", []).append(call)
            self._calls.add(call["id"])
        elif kind == "function_call_output":
            self._output(where, item)
        else:
            raise _no_item(where, str(kind))

    def _text(self, role: str, text: str) -> None:
        if role != "assistant":
            self.messages.append(_message(role, text))
            self._is_open = False
            return
        if self._is_open and (self.messages[-1]["content"] or "tool_calls" in self.messages[-1]):
            self._is_open = False
        self._answer()["content"] = text

    def _output(self, where: str, item: Mapping[str, Any]) -> None:
        call = _string(where, item, "call_id")
        if call not in self._calls:
            raise RequestError(f"{where} answers no call before it", "input")
        output = _text(f"{where}.output", item.get("output"))
        self.messages.append({**_message("tool", output), "tool_call_id": call})
        self._is_open = False

    def _answer(self) -> Message:
        if not self._is_open:
            self.messages.append(_message("assistant", ""))
            self._is_open = True
        return self.messages[-1]


def _call(where: str, item: Mapping[str, Any]) -> dict[str, Any]:
    arguments = _string(where, item, "arguments")
    try:
        is_object = isinstance(json.loads(arguments or "{}"), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise RequestError(f"{where}.arguments must be the text of a JSON object", "input")
    function = {"name": _string(where, item, "name"), "arguments": arguments}
    return {"id": _string(where, item, "call_id"), "type": "function", "function": function}


def _string(where: str, item: Mapping[str, Any], key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise RequestError(f"{where}.{key} must be a string", "input")
    return value


def _text(where: str, content: object) -> str:
    if isinstance(content, str):
        return content
    parts: list[Any] = content if isinstance(content, list) else [content]
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise unsupported(
                f"{where} holds a part of type '{str(kind)[:40]}'; only text parts are supported",
                "input",
            )
    return "\n".join(part["text"] for part in parts)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _no_item(where: str, kind: str) -> RequestError:
    return unsupported(
        f"{where} is a '{kind[:40]}' and no message, thought, function call or its output", "input"
    )
