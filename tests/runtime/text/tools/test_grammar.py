"""A model that babbles writes valid calls in every format, whether marks are tokens or texts."""

import json
from typing import Any

import jsonschema
import pytest

from runtime.engine.request import RequestError, SamplingParams
from runtime.text.tools.definitions import ToolOffer, offer_of
from runtime.text.tools.formats import (
    GENERIC,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    PHI,
    ToolFormat,
    format_of,
)
from runtime.text.tools.grammar import call_constraint
from runtime.text.tools.parser import ToolCallParser
from tests.runtime.server.harness import tiny_tokenizer
from tests.runtime.text.grammar.harness import RandomModel, answers, request

FORMATS = [HERMES, GENERIC, LLAMA, MISTRAL, MISTRAL_NAMED, PHI]
PARAMETERS = {
    "type": "object",
    "properties": {
        "n": {"$ref": "#/$defs/n"},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["n"],
    "additionalProperties": False,
    "$defs": {"n": {"enum": [1, 22]}},
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "count", "parameters": PARAMETERS, "strict": True}},
    {"type": "function", "function": {"name": "stop.now"}},
]
MARK = tiny_tokenizer().id_of("<|im_start|>")


def offer(choice: Any, parallel: bool = True) -> ToolOffer:
    found = offer_of(TOOLS, choice, parallel)
    assert found is not None
    return found


def written(offer: ToolOffer, format_: ToolFormat, *, as_token: bool, seed: int = 0) -> str:
    """The text of an answer; a mark that is a token is written out."""
    ids = {format_.begin: MARK} if as_token else {}
    constraint = call_constraint(offer, format_, ids.get)
    one = request("x", constraint, max_tokens=700, sampling=SamplingParams(seed=seed))
    answer = answers([one], RandomModel(eager=2.5))["x"]
    assert answer.end.finish_reason == "stop", answer.text
    return answer.text.replace("<|im_start|>", format_.begin)


def calls_of(text: str, format_: ToolFormat) -> tuple[str, list[tuple[str, Any]]]:
    parser = ToolCallParser(format_, ["count", "stop.now"])
    content, names, arguments = "", [], []
    for parsed in (parser.feed(text), parser.finish()):
        content += parsed.content
        for call in parsed.calls:
            if call.name is not None:
                names.append(call.name)
                arguments.append("")
            arguments[call.index] += call.arguments
    return content, [(n, json.loads(a)) for n, a in zip(names, arguments, strict=True)]


@pytest.mark.parametrize("as_token", [False, True])
@pytest.mark.parametrize("format_", FORMATS, ids=lambda format_: format_.name)
def test_what_is_demanded_is_a_valid_call(format_: ToolFormat, as_token: bool) -> None:
    if as_token and not format_.begin:
        return
    for choice, parallel in (
        ("required", False),
        ({"type": "function", "function": {"name": "count"}}, True),
    ):
        text = written(offer(choice, parallel), format_, as_token=as_token)
        content, ((name, arguments),) = calls_of(text, format_)
        assert content == "" and name in ("count", "stop.now")
        if choice != "required":
            assert name == "count"
        if name == "count":
            jsonschema.validate(arguments, PARAMETERS)


@pytest.mark.parametrize("as_token", [False, True])
@pytest.mark.parametrize("format_", [HERMES, LLAMA, MISTRAL], ids=lambda format_: format_.name)
def test_strict_arguments_are_exact_where_the_model_is_free(
    format_: ToolFormat, as_token: bool
) -> None:
    for seed in range(3):
        text = written(offer("auto"), format_, as_token=as_token and bool(format_.begin), seed=seed)
        _, calls = calls_of(text, format_)
        for name, arguments in calls:
            if name == "count":
                jsonschema.validate(arguments, PARAMETERS)
        assert not (format_.begin and not calls and format_.begin in text)


def test_without_strict_a_free_model_is_free() -> None:
    loose = offer_of(TOOLS[1:], "auto", None)
    assert loose is not None and call_constraint(loose, HERMES, lambda _: None) is None


def test_parameters_that_cannot_be_enforced_name_their_tool() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]
    found = offer_of(tools, "required", None)
    assert found is not None
    with pytest.raises(RequestError, match=r"tool 'f'.*'not'"):
        call_constraint(found, HERMES, lambda _: None)


def test_all_tools_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    large = {"type": "object", "properties": {"a": {"enum": ["x" * 40_000]}}}
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": large}} for i in range(2)
    ]
    found = offer_of(tools, "required", None)
    assert found is not None
    with pytest.raises(RequestError, match="more than 65536 bytes"):
        call_constraint(found, HERMES, lambda _: None)
    monkeypatch.setattr("runtime.text.tools.grammar._SECONDS", 0.0)
    with pytest.raises(RequestError, match="too long to compile"):
        call_constraint(offer("required"), HERMES, lambda _: None)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages }}", GENERIC),
        ("{% if tools %}<tool_call>{% endif %}", HERMES),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", MISTRAL),
        ("{% if tools %}[TOOL_CALLS]x[ARGS]{% endif %}", MISTRAL_NAMED),
        ("{% if tools %}Environment: ipython{% endif %}", LLAMA),
        ("{{ tools }}<|python_tag|>", LLAMA),
        ("{{ tools }}<|tool|>", PHI),
        ("{{ tools }}<tool_call><function=", GENERIC),
    ],
)
def test_a_format_is_told_from_the_template(template: str, expected: ToolFormat) -> None:
    assert format_of(template) is expected
