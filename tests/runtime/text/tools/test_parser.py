import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.text.tools.formats import (
    GENERIC,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    PHI,
    ToolFormat,
)
from runtime.text.tools.parser import ToolCallParser, long_id, short_id

NAMES = ("add", "look_up")
ADD = '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}\\"{"}]}}'
ADD_ARGUMENTS = {"a": 1, "b": [2, {"c": '}"{'}]}
Calls = list[tuple[str, Any]]


def read(format_: ToolFormat, pieces: list[str]) -> tuple[str, Calls]:
    """Content, and calls with parsed arguments, after checking what streams promise."""
    ids = iter(range(100))
    parser = ToolCallParser(format_, NAMES, lambda: f"id{next(ids)}")
    content, seen_ids = "", []
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for parsed in [*(parser.feed(piece) for piece in pieces), parser.finish()]:
        content += parsed.content
        for call in parsed.calls:
            if call.name is not None:
                assert call.index == len(names), "calls come in order"
                names[call.index], arguments[call.index] = call.name, ""
                seen_ids.append(call.id)
            assert call.index == len(names) - 1, "a call that is over goes on"
            arguments[call.index] += call.arguments
    assert len(set(seen_ids)) == len(names) == parser.num_calls
    return content, [(names[i], _parsed(arguments[i])) for i in names]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return f"cut: {text}"


CASES: list[tuple[ToolFormat, str, str, Calls]] = [
    (HERMES, "Just text.", "Just text.", []),
    (HERMES, "", "", []),
    (HERMES, "a < b <tool and <tool_cal", "a < b <tool and <tool_cal", []),
    (HERMES, f"<tool_call>\n{ADD}\n</tool_call>", "", [("add", ADD_ARGUMENTS)]),
    (
        HERMES,
        f'Let me see.\n<tool_call>\n{ADD}\n</tool_call>\n<tool_call>\n{{"arguments": {{}}, '
        '"name": "look_up"}\n</tool_call>\n',
        "Let me see.",
        [("add", ADD_ARGUMENTS), ("look_up", {})],
    ),
    (HERMES, f"<tool_call>{ADD}</tool_call>\nDone.", "Done.", [("add", ADD_ARGUMENTS)]),
    (HERMES, f"<tool_call>\n{ADD}", "", [("add", ADD_ARGUMENTS)]),
    (HERMES, '<tool_call>\n{"name": "add"}\n</tool_call>', "", [("add", {})]),
    (HERMES, '<tool_call>{"name": "add", "arguments": null}</tool_call>', "", [("add", {})]),
    (
        HERMES,
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [("add", {"a": 1})],
    ),
    (HERMES, "<tool_call>nothing</tool_call>", "<tool_call>nothing</tool_call>", []),
    (HERMES, '<tool_call>{"name" 5}', '<tool_call>{"name" 5}', []),
    (HERMES, '<tool_call>{"nam', '<tool_call>{"nam', []),
    (HERMES, "<tool_call>", "<tool_call>", []),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": "x', "", [("add", 'cut: {"a": "x')]),
    (GENERIC, f"<tool_call>[{ADD}, {ADD}]</tool_call>", "", [("add", ADD_ARGUMENTS)] * 2),
    (LLAMA, '{"name": "add", "parameters": {"a": 1}}', "", [("add", {"a": 1})]),
    (LLAMA, '<|python_tag|>{"name": "add", "parameters": {}}', "", [("add", {})]),
    (
        LLAMA,
        '{"name": "add", "parameters": {}}; {"name": "look_up", "parameters": {"q": "a"}}',
        "",
        [("add", {}), ("look_up", {"q": "a"})],
    ),
    (LLAMA, '{"name": "unknown", "parameters": {}}', '{"name": "unknown", "parameters": {}}', []),
    (LLAMA, '{"answer": 4}', '{"answer": 4}', []),
    (LLAMA, 'It is {"name": "add"}', 'It is {"name": "add"}', []),
    (LLAMA, "<|python", "<|python", []),
    (MISTRAL, f"[TOOL_CALLS] [{ADD}, {ADD}]", "", [("add", ADD_ARGUMENTS)] * 2),
    (MISTRAL, f"Sure. [TOOL_CALLS][{ADD}]", "Sure.", [("add", ADD_ARGUMENTS)]),
    (MISTRAL, '[TOOL_CALLS]add[ARGS]{"a": 1}', "", [("add", {"a": 1})]),
    (
        MISTRAL_NAMED,
        '[TOOL_CALLS]add[CALL_ID]abc123DEF[ARGS]{"a": 1}[TOOL_CALLS]look_up{}',
        "",
        [("add", {"a": 1}), ("look_up", {})],
    ),
    (MISTRAL, "[TOOL_CALLS] no, rather not", "[TOOL_CALLS] no, rather not", []),
    (PHI, f"<|tool_call|>[{ADD}]<|/tool_call|>", "", [("add", ADD_ARGUMENTS)]),
    (
        HERMES,
        '<tool_call>{"name": "é\\u00e9", "arguments": {"日": "🙂"}}',
        "",
        [("éé", {"日": "🙂"})],
    ),
]


@pytest.mark.parametrize(("format_", "text", "content", "calls"), CASES)
def test_calls_are_found_however_the_text_is_cut(
    format_: ToolFormat, text: str, content: str, calls: Calls
) -> None:
    assert read(format_, [text]) == (content, calls)
    assert read(format_, list(text)) == (content, calls)
    for cut in range(1, len(text)):
        assert read(format_, [text[:cut], text[cut:]]) == (content, calls)


def test_arguments_are_given_out_as_they_come() -> None:
    parser = ToolCallParser(HERMES, NAMES)
    parser.feed('<tool_call>{"name": "add", "arguments": {"a": ')
    (piece,) = parser.feed('"some long').calls
    assert (piece.arguments, piece.name, piece.id) == ('"some long', None, None)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, PHI]),
    st.lists(
        st.sampled_from(
            [
                *'{}[]",:; \n\\<>',
                *("name", "arguments", "add", "<tool_call>", "</tool_call>", "[TOOL_CALLS]"),
                *("[ARGS]", "<|tool_call|>", '{"name": "add", "arguments": {'),
            ]
        ),
        max_size=30,
    ),
)
@example(HERMES, ["<tool_call>", "</tool_call>"])
def test_any_text_is_read_alike_in_pieces(format_: ToolFormat, parts: list[str]) -> None:
    text = "".join(parts)
    whole = read(format_, [text])
    assert read(format_, list(text)) == whole
    if not whole[1]:
        assert whole[0] == text, "what is no call is content, as it was written"


def test_ids_are_of_the_kind_that_templates_take() -> None:
    assert len(short_id()) == 9 and short_id().isalnum() and short_id() != short_id()
    assert long_id().startswith("call_") and long_id() != long_id()
