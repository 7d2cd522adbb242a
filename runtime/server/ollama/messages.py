"""Ollama's messages as chat templates know them."""

from typing import Any

from runtime.engine.request import RequestError
from runtime.server.messages import checked_messages
from runtime.text.template import ChatTemplate


def messages_of(given: list[Any], template: ChatTemplate | None) -> list[dict[str, Any]]:
    """Each message with a role and a text. RequestError for one with images, or of another form."""
    plain = [_message(index, one) for index, one in enumerate(given)]
    return checked_messages(plain, template)


def _message(index: int, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict) or not isinstance(given.get("role"), str):
        raise RequestError(f"messages[{index}] must be an object with a role", "messages")
    if given.get("images"):
        raise RequestError(
            f"messages[{index}].images is not supported: this server serves text models", "images"
        )
    content = given.get("content")
    if content is not None and not isinstance(content, str):
        raise RequestError(f"messages[{index}].content must be a string", "messages")
    message: dict[str, Any] = {"role": given["role"].lower(), "content": content or ""}
    if given.get("thinking"):
        message["reasoning_content"] = given["thinking"]
    if given.get("tool_calls"):
        message["tool_calls"] = [_call(index, call) for call in _calls(index, given)]
    if given.get("tool_name"):
        message["name"] = given["tool_name"]
    return message


def _calls(index: int, given: dict[str, Any]) -> list[Any]:
    calls = given["tool_calls"]
    if not isinstance(calls, list):
        raise _not_calls(index)
    return calls


def _call(index: int, call: object) -> dict[str, Any]:
    """A call as OpenAI writes it, but for its arguments, which templates take as an object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _not_calls(index)
    arguments = function.get("arguments") or {}
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _not_calls(index: int) -> RequestError:
    return RequestError(
        f"messages[{index}].tool_calls must be a list of objects with a function", "messages"
    )
