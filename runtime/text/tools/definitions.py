"""What a client offers and demands: `tools`, `tool_choice` and `parallel_tool_calls`, checked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runtime.engine.request import RequestError

MAX_TOOLS = 128
MAX_DESCRIPTION = 16 * 1024
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Tool:
    """One function. `parameters` is the JSON schema of its arguments; `strict`: arguments are held
    to it even where the model is free to call or not."""

    name: str
    parameters: Mapping[str, Any]
    strict: bool
    as_given: Mapping[str, Any]
    """What templates are shown."""


@dataclass(frozen=True)
class ToolOffer:
    """`named`: the one function that must be called. parallel: several calls in one answer."""

    tools: tuple[Tool, ...]
    choice: Literal["auto", "required", "named"]
    parallel: bool
    named: str | None = None

    @property
    def callable(self) -> tuple[Tool, ...]:
        """The tools that may be called."""
        return tuple(tool for tool in self.tools if self.named in (None, tool.name))


def offer_of(tools: Any, choice: Any, parallel: bool | None) -> ToolOffer | None:
    """None where no tool may be called. RequestError naming the field and the entry at fault."""
    if tools is not None and not isinstance(tools, list):
        raise RequestError("'tools' must be a list of functions", "tools")
    if not tools:
        if choice not in (None, "none", "auto"):
            raise RequestError("'tool_choice' needs 'tools'", "tool_choice")
        return None
    if len(tools) > MAX_TOOLS:
        raise RequestError(f"{len(tools)} tools are more than {MAX_TOOLS}", "tools")
    found = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools))
    names = [tool.name for tool in found]
    if len(set(names)) < len(names):
        raise RequestError("two tools have the same name", "tools")
    if choice == "none":
        return None
    if choice in (None, "auto", "required"):
        return ToolOffer(found, choice or "auto", parallel is not False)
    return ToolOffer(found, "named", False, _named(choice, names))


def _tool(value: Any, where: str) -> Tool:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or value.get("type", "function") != "function":
        raise RequestError(
            f"{where} must be an object with type 'function' and a function", "tools"
        )
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(
            f"{where}.function.name must be 1 to 128 letters, digits or _ . : / -", "tools"
        )
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise RequestError(f"{where}.function.description must be a string", "tools")
    if len(description or "") > MAX_DESCRIPTION:
        raise RequestError(
            f"{where}.function.description is longer than {MAX_DESCRIPTION} characters", "tools"
        )
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise RequestError(f"{where}.function.parameters must be a JSON schema", "tools")
    shown = {**value, "type": "function"}
    return Tool(name, parameters or _NO_PARAMETERS, function.get("strict") is True, shown)


def _named(choice: Any, names: Sequence[str]) -> str:
    """{"type": "function", "function": {"name": ...}}"""
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if name is None or choice.get("type", "function") != "function":
        raise RequestError(
            "'tool_choice' must be 'none', 'auto', 'required' or name a function", "tool_choice"
        )
    if name not in names:
        raise RequestError(
            f"'tool_choice' names {str(name)[:100]!r}, which is not among the tools", "tool_choice"
        )
    return str(name)
