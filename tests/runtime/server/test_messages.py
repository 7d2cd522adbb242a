"""Roles: as the template knows them, or refused; never dropped by a template."""

from typing import Any

import pytest

from runtime.engine.request import RequestError
from runtime.server.messages import checked_messages
from runtime.server.responses_input import messages_of_input
from runtime.server.responses_schema import ResponseBody
from runtime.text.template import ChatTemplate

PLAIN = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
KNOWING = ChatTemplate("{% if messages[0].role == 'developer' or \"critic\" == '' %}{% endif %}")


def roles(template: ChatTemplate | None, *given: str) -> list[str]:
    messages = [{"role": role, "content": "x"} for role in given]
    return [one["role"] for one in checked_messages(messages, template)]


def test_a_developer_is_the_system_where_nobody_tells_them_apart() -> None:
    assert roles(PLAIN, "developer", "user", "assistant", "tool") == [
        "system", "user", "assistant", "tool",
    ]  # fmt: skip
    assert roles(None, "developer") == ["system"]
    assert roles(KNOWING, "developer", "critic") == ["developer", "critic"]


@pytest.mark.parametrize("role", ["wizard", "critic", "User", "", "x" * 1000])
def test_a_role_that_the_template_does_not_know_is_refused(role: str) -> None:
    with pytest.raises(RequestError, match=r"messages\[1\].role is '.{0,40}', which this") as no:
        roles(PLAIN, "user", role)
    assert no.value.param == "messages" and "use one of system, developer, user" in str(no.value)
    body = ResponseBody.model_validate({"input": [{"role": role, "content": "x"}]})
    with pytest.raises(RequestError, match=r"input\[0\].role") as no:
        messages_of_input(body, PLAIN)
    assert no.value.param == "input"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Hi", "must be an object with a role"),
        ({"content": "Hi"}, "must be an object with a role"),
        ({"role": None, "content": "Hi"}, "must be an object with a role"),
        ({"role": "user"}, "content is missing; send a string or a list"),
        ({"role": "tool", "content": None}, "content is missing"),
    ],
)
def test_messages_that_are_none(message: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words) as refused:
        checked_messages([message], PLAIN)
    assert refused.value.param == "messages"


def test_an_answer_may_have_no_content() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    given = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert checked_messages([given], PLAIN) == [{**given, "content": ""}]
    assert given["content"] is None, "what the client sent stays as it was"
