import json
from typing import Any

import pytest

from runtime.engine.request import RequestError
from runtime.text.template import ChatTemplate
from runtime.text.tools.definitions import offer_of
from runtime.text.tools.formats import GENERIC, HERMES
from runtime.text.tools.history import prepared, template_variables

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"é": [1]}'}}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Add."},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "2"},
]
HERMES_TEMPLATE = (
    "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>"
    "{{ c.function.name }} {{ c.function.arguments | tojson }}</tool_call>{% endfor %}{% endfor %}"
)


def test_templates_see_arguments_as_objects() -> None:
    offer = offer_of(TOOLS, None, None)
    text = ChatTemplate(HERMES_TEMPLATE).render(
        prepared(TALK, HERMES, offer), variables=template_variables(HERMES, offer)
    )
    assert text.startswith(json.dumps(TOOLS[0]))
    assert '<assistant><tool_call>add {"é": [1]}</tool_call><tool>2' in text


def test_a_template_without_tools_is_given_text() -> None:
    offer = offer_of(TOOLS, None, None)
    assert template_variables(GENERIC, offer) == {}
    system, user, assistant, result = prepared(TALK, GENERIC, offer)
    assert (
        system["content"].startswith("Be kind.\n\n") and json.dumps(TOOLS[0]) in system["content"]
    )
    assert user == TALK[1]
    assert assistant == {
        "role": "assistant",
        "content": '<tool_call>\n{"name": "add", "arguments": {"é": [1]}}\n</tool_call>',
    }
    assert result["role"] == "user" and result["content"] == "<tool_response>\n2\n</tool_response>"
    (first, *_) = prepared(TALK[1:], GENERIC, offer)
    assert first["role"] == "system" and "<tools>" in first["content"]
    assert prepared(TALK[:2], GENERIC, None) == TALK[:2]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "assistant", "tool_calls": {}, "content": "x"}, None),
        ({"role": "assistant", "tool_calls": "x"}, "must be a list"),
        ({"role": "assistant", "tool_calls": [7]}, "function with a name"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "is not JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]},
            "must be a JSON object",
        ),
        ({"role": "tool"}, "needs content"),
    ],
)
def test_what_is_wrong_with_history_is_named(message: dict[str, Any], words: str | None) -> None:
    if words is None:
        assert prepared([message], HERMES, None) == [{"role": "assistant", "content": "x"}]
        return
    with pytest.raises(RequestError, match=words):
        prepared([message], HERMES, None)
