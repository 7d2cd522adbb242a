"""Answers held to tool calls: where one is demanded, or where arguments must be exact."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from runtime.engine.constraint import Constraint
from runtime.engine.request import RequestError
from runtime.text.grammar.check import CODE, MAX_BYTES, checked, schema_constraint
from runtime.text.grammar.options import inline_schema
from runtime.text.tools.definitions import Tool, ToolOffer
from runtime.text.tools.formats import ToolFormat

Mark = Callable[[str], str]
_TEXT = "/(.|\\n)*/"
_SECONDS = 4.0
"""For the parameters of all tools together; one alone takes milliseconds."""


def call_constraint(
    offer: ToolOffer, format_: ToolFormat, token_id_of: Callable[[str], int | None]
) -> Constraint | None:
    """What the answer must be; None where the model is free. Takes milliseconds per tool.

    Raises RequestError for parameters that are a schema which cannot be enforced.
    """
    if offer.choice == "auto" and not any(tool.strict for tool in offer.tools):
        return None
    size = sum(len(json.dumps(tool.parameters)) for tool in offer.callable)
    if size > MAX_BYTES:
        raise RequestError(f"the tools' parameters take more than {MAX_BYTES} bytes", "tools", CODE)
    deadline = time.monotonic() + _SECONDS
    schemas: dict[str, Mapping[str, Any]] = {}
    for tool in offer.callable:
        schemas[tool.name] = _checked_parameters(tool)
        if time.monotonic() > deadline:
            raise RequestError("the tools' parameters take too long to compile", "tools", CODE)
    # Compiled aside with marks as texts, since only the engine's tokenizer knows them as tokens.
    checked("lark", _grammar(offer, format_, schemas, json.dumps), "tools")

    def mark(text: str) -> str:
        id_ = token_id_of(text)
        return json.dumps(text) if id_ is None else f"<[{id_}]>"

    return Constraint("lark", _grammar(offer, format_, schemas, mark))


def _checked_parameters(tool: Tool) -> Mapping[str, Any]:
    try:
        ready: dict[str, Any] = json.loads(schema_constraint(dict(tool.parameters), "tools").text)
    except RequestError as error:
        message = f"the parameters of tool '{tool.name}': {error}"
        raise RequestError(message, "tools", error.code) from error
    return ready


def _grammar(
    offer: ToolOffer, format_: ToolFormat, schemas: Mapping[str, Mapping[str, Any]], mark: Mark
) -> str:
    rules = {"calls": _calls(offer, format_, mark), **_each_call(format_, schemas, mark)}
    if offer.choice != "auto":
        start = "calls"
    elif not format_.begin:
        start, rules["PLAIN"] = "PLAIN | calls", "/([^{](.|\\n)*)?/"
    else:
        start, rules["TEXT"] = "TEXT (calls TEXT)?", _TEXT
        if not mark(format_.begin).startswith("<["):
            # A mark that is no token could be a part of the text; lazily, text ends at the mark.
            start = "TEXT | head tail TEXT"
            rules["head[lazy]"] = f"TEXT {mark(format_.begin)}"
            rules["tail"] = rules["calls"].removeprefix(mark(format_.begin)).lstrip()
    return "".join(f"{name}: {body}\n" for name, body in {"start": start, **rules}.items())


def _calls(offer: ToolOffer, format_: ToolFormat, mark: Mark) -> str:
    """At least one call, and only one where several are not allowed."""
    begin = f"{mark(format_.begin)} " if format_.begin else ""
    end = f" {mark(format_.end)}" if format_.end else ""
    if format_.as_list:
        more = ' (", " call)*' if offer.parallel else ""
        return f'{begin}"[" call{more} "]"{end}'
    one = f'{begin}"\\n" call "\\n"{end}' if format_.end else f"{begin}call"
    between = format_.between or ("" if format_.name_mark else "\n")
    gap = f"{json.dumps(between)} " if between else ""
    return f"{one} ({gap}{one})*" if offer.parallel else one


def _each_call(
    format_: ToolFormat, schemas: Mapping[str, Mapping[str, Any]], mark: Mark
) -> dict[str, str]:
    """Written as templates print them: one space after each comma and colon."""
    rules = {"call": " | ".join(f"call_{index}" for index in range(len(schemas)))}
    for index, (name, schema) in enumerate(schemas.items()):
        rules[f"arguments_{index}"] = inline_schema(schema)
        quoted = json.dumps(name)
        if format_.name_mark:
            rules[f"call_{index}"] = f"{quoted} {mark(format_.name_mark)} arguments_{index}"
        else:
            opening = f'{{"name": {quoted}, "{format_.arguments_key}": '
            rules[f"call_{index}"] = f'{json.dumps(opening)} arguments_{index} "}}"'
    return rules
