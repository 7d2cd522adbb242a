"""Messages with tool calls and results as chat templates want them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.engine.request import RequestError
from runtime.text.tools.definitions import ToolOffer
from runtime.text.tools.formats import ToolFormat

_INSTRUCTIONS = """You can call functions. Their signatures, each a JSON object on a line of its \
own, stand between <tools> and </tools>:
<tools>
{tools}
</tools>
To call a function, answer with its name and its arguments as a JSON object between <tool_call> \
and </tool_call>, and nothing else:
<tool_call>
{{"name": "function name", "arguments": {{"argument": "value"}}}}
</tool_call>
The result comes between <tool_response> and </tool_response>. If no function helps, answer in \
plain words."""


def prepared(
    messages: Sequence[Mapping[str, Any]], format_: ToolFormat, offer: ToolOffer | None
) -> list[dict[str, Any]]:
    """Arguments of earlier calls become JSON objects, which templates print as they like. For a
    template that knows no tools, calls and results become text, and a system message offers.

    RequestError for a call or a result that is not what OpenAI's interface says.
    """
    ready = [_with_objects(message, index) for index, message in enumerate(messages)]
    if format_.in_template:
        return ready
    plain = [_as_text(message) for message in ready]
    return _offered(plain, offer) if offer is not None else plain


def mentions_tools(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any("tool_calls" in message or message.get("role") == "tool" for message in messages)


def template_variables(format_: ToolFormat, offer: ToolOffer | None) -> dict[str, Any]:
    if offer is None or not format_.in_template:
        return {}
    return {"tools": [tool.as_given for tool in offer.tools]}


def _with_objects(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    where = f"messages[{index}]"
    if message.get("role") == "tool" and message.get("content") is None:
        raise RequestError(f"{where}: a tool's message needs content", "messages")
    calls = message.get("tool_calls")
    if not calls:
        # Templates ask whether there are calls by asking whether the key is there.
        return {key: value for key, value in message.items() if key != "tool_calls"}
    if not isinstance(calls, list):
        raise RequestError(f"{where}.tool_calls must be a list", "messages")
    ready = [_call(call, f"{where}.tool_calls[{place}]") for place, call in enumerate(calls)]
    return {**message, "content": message.get("content") or "", "tool_calls": ready}


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestError(f"{where} must have a function with a name", "messages")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise RequestError(f"{where}.function.arguments is not JSON", "messages") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RequestError(f"{where}.function.arguments must be a JSON object", "messages")
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    if message.get("role") == "tool":
        return {
            "role": "user",
            "content": f"<tool_response>\n{message['content']}\n</tool_response>",
        }
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    parts = [str(message["content"])] if message["content"] else []
    for call in calls:
        function = call["function"]
        value = {"name": function["name"], "arguments": function["arguments"]}
        parts.append(f"<tool_call>\n{json.dumps(value, ensure_ascii=False)}\n</tool_call>")
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": "\n".join(parts)}


def _offered(messages: list[dict[str, Any]], offer: ToolOffer) -> list[dict[str, Any]]:
    tools = "\n".join(json.dumps(tool.as_given, ensure_ascii=False) for tool in offer.tools)
    text = _INSTRUCTIONS.format(tools=tools)
    if messages and messages[0].get("role") == "system":
        first = messages[0].get("content")
        if isinstance(first, list):
            content: Any = [*first, {"type": "text", "text": text}]
        else:
            content = f"{first}\n\n{text}"
        return [{**messages[0], "content": content}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
