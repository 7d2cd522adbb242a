"""The messages of a chat: checked, and with roles that its model knows."""

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.engine.request import RequestError
from runtime.server.schemas import ROLES
from runtime.text.template import ChatTemplate

Message = dict[str, Any]


def checked_messages(messages: Sequence[Any], template: ChatTemplate | None) -> list[Message]:
    """The messages, each an object with a role that the template knows, and with content.

    A developer's message is a system message for templates that do not tell them apart. Templates
    drop messages whose role they do not know, so that RequestError names the first of those.
    """
    return [_checked(one, f"messages[{index}]", template) for index, one in enumerate(messages)]


def known_role(role: str, where: str, field: str, template: ChatTemplate | None) -> str:
    """The role under which the template knows it; RequestError where it knows none."""
    source = "" if template is None else template.source
    if f"'{role}'" in source or f'"{role}"' in source:
        return role
    if role == "developer":
        return "system"
    if role not in ROLES:
        raise RequestError(
            f"{where}.role is '{role[:40]}', which this model's chat template does not know; use "
            f"one of {', '.join(ROLES)}",
            field,
        )
    return role


def _checked(message: Any, where: str, template: ChatTemplate | None) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError(f"{where} must be an object with a role", "messages")
    role = known_role(message["role"], where, "messages", template)
    content = message.get("content")
    if content is None and role != "assistant":
        raise RequestError(
            f"{where}.content is missing; send a string or a list of text parts", "messages"
        )
    return {**message, "role": role, "content": "" if content is None else content}
