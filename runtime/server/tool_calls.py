"""Tool calls in chats: from a request's fields to what the model is asked, and back to messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, WithJsonSchema
from starlette.concurrency import run_in_threadpool

from runtime.engine.constraint import Constraint
from runtime.engine.request import RequestError
from runtime.generation import GenerationParams, TextDelta
from runtime.server.constraints import ConstraintFields, asks_for_constraint
from runtime.server.message_reader import MessageReader, PlainReader
from runtime.service import GenerationService
from runtime.text.tools.definitions import ToolOffer, offer_of
from runtime.text.tools.formats import GENERIC, ToolFormat, format_of
from runtime.text.tools.grammar import call_constraint
from runtime.text.tools.history import mentions_tools, prepared, template_variables
from runtime.text.tools.parser import CallDelta, ToolCallParser

_NAME = {"type": "string", "pattern": "^[A-Za-z0-9_.:/-]{1,128}$"}
FUNCTION = {
    "name": _NAME,
    "description": {"type": "string"},
    "parameters": {"type": "object", "description": "A JSON schema of the arguments."},
    "strict": {"type": "boolean"},
}
CHOICES: list[dict[str, Any]] = [{"type": "null"}, {"enum": ["none", "auto", "required"]}]
_TOOLS = {
    "type": ["array", "null"],
    "items": {
        "type": "object",
        "required": ["type", "function"],
        "properties": {
            "type": {"const": "function"},
            "function": {"type": "object", "required": ["name"], "properties": FUNCTION},
        },
    },
}
_NAMED = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "required": ["name"], "properties": {"name": _NAME}},
    },
}


class ToolFields(BaseModel):
    """Checked by `tool_use_of`."""

    tools: Annotated[Any, WithJsonSchema(_TOOLS)] = None
    tool_choice: Annotated[Any, WithJsonSchema({"anyOf": [*CHOICES, _NAMED]})] = None
    parallel_tool_calls: bool | None = None


@dataclass(frozen=True)
class ToolUse:
    """One request's tools, in the way its model knows them."""

    format: ToolFormat
    offer: ToolOffer | None = None
    constraint: Constraint | None = None
    marks_are_special: bool = False

    @property
    def must_call(self) -> bool:
        return self.offer is not None and self.offer.choice != "auto"

    def messages(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the chat template is given. RequestError for a call that is none."""
        if self.offer is None and not mentions_tools(messages):
            return list(messages)
        return prepared(messages, self.format, self.offer)

    def variables(self, asked: Mapping[str, Any] | None) -> dict[str, Any]:
        return {**template_variables(self.format, self.offer), **(asked or {})}

    def params(self, params: Sequence[GenerationParams]) -> list[GenerationParams]:
        """Marks that are special tokens must be seen to be understood."""
        if not self.marks_are_special:
            return list(params)
        return [replace(one, skip_special_tokens=False) for one in params]

    def reader(self) -> MessageReader:
        if self.offer is None:
            return PlainReader()
        return ToolReader(ToolCallParser(self.format, [tool.name for tool in self.offer.tools]))


async def tool_use_of(service: GenerationService, body: ToolFields) -> ToolUse:
    """RequestError naming the field for tools that are none, and for schemas of arguments that
    cannot be enforced where calls are demanded. Schemas are compiled off the event loop."""
    template = service.template
    format_ = GENERIC if template is None else format_of(template.source)
    offer = offer_of(body.tools, body.tool_choice, body.parallel_tool_calls)
    if offer is None:
        return ToolUse(format_)
    if isinstance(body, ConstraintFields) and asks_for_constraint(body):
        raise RequestError(
            "tools and a constraint cannot both hold; set tool_choice to 'none'", "tools"
        )
    tokenizer = service.tokenizer
    constraint = await run_in_threadpool(call_constraint, offer, format_, tokenizer.id_of)
    special = any(tokenizer.id_of(mark) in tokenizer.special_ids for mark in format_.marks)
    return ToolUse(format_, offer, constraint, special)


class ToolReader:
    """Calls are `tool_calls`; the rest of the text is content."""

    def __init__(self, parser: ToolCallParser) -> None:
        self.num_reasoning_tokens = 0
        self.finish_reason: str | None = None
        self._parser = parser
        self._content: list[str] = []
        self._calls: list[dict[str, Any]] = []

    def feed(self, delta: TextDelta) -> dict[str, Any]:
        parsed = self._parser.feed(delta.text)
        content, calls = parsed.content, parsed.calls
        if delta.finish_reason is not None:
            last = self._parser.finish()
            content, calls = content + last.content, [*calls, *last.calls]
            called = delta.finish_reason == "stop" and self._parser.num_calls > 0
            self.finish_reason = "tool_calls" if called else delta.finish_reason
        self._content.append(content)
        pieces = self._noted(calls)
        if not pieces:
            return {"content": content}
        return {**({"content": content} if content else {}), "tool_calls": pieces}

    def message(self) -> dict[str, Any]:
        content = "".join(self._content)
        if not self._calls:
            return {"content": content}
        calls = [{key: call[key] for key in call if key != "index"} for call in self._calls]
        return {"content": content or None, "tool_calls": calls}

    def _noted(self, deltas: Sequence[CallDelta]) -> list[dict[str, Any]]:
        """One piece for each call that these are of; whole calls are put together meanwhile."""
        pieces: dict[int, dict[str, Any]] = {}
        for delta in deltas:
            if delta.name is not None:
                pieces[delta.index] = _opening(delta)
                self._calls.append(_opening(delta))
            empty = {"index": delta.index, "function": {"arguments": ""}}
            piece = pieces.setdefault(delta.index, empty)
            piece["function"]["arguments"] += delta.arguments
            self._calls[delta.index]["function"]["arguments"] += delta.arguments
        return list(pieces.values())


def _opening(delta: CallDelta) -> dict[str, Any]:
    function = {"name": delta.name, "arguments": ""}
    return {"index": delta.index, "id": delta.id, "type": "function", "function": function}
