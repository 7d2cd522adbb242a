"""Tools as the unmodified openai client offers them, to a model that says what it is told."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from openai import OpenAI

from tests.runtime.server.harness import MODEL, running, tiny_tokenizer
from tests.runtime.server.stage import CALL, MESSAGES, WEATHER, Stage
from tests.runtime.text.grammar.harness import RandomModel

TIME: dict[str, Any] = {"type": "function", "function": {"name": "time"}}


def ask(stage: Stage, **fields: Any) -> Any:
    body = {"messages": MESSAGES, "max_tokens": 200, **fields}
    return stage.client.chat.completions.create(model=MODEL, temperature=0, **body)


def test_a_call_is_found_in_the_answer(stage: Stage) -> None:
    stage.say(f"I look.\n{CALL}\n{CALL}", tools=[WEATHER, TIME])
    (choice,) = ask(stage, tools=[WEATHER, TIME]).choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I look."
    first, second = choice.message.tool_calls
    assert first.type == "function" and first.id != second.id and first.id.startswith("call_")
    assert first.function.name == "weather"
    assert json.loads(first.function.arguments) == {"city": "Oslo"}


def test_the_stream_adds_up_to_the_answer(stage: Stage) -> None:
    stage.say(f"{CALL}\n{CALL}", tools=[WEATHER])
    chunks = [chunk.choices[0] for chunk in ask(stage, tools=[WEATHER], stream=True)]
    assert [c.finish_reason for c in chunks if c.finish_reason] == ["tool_calls"]
    assert not "".join(c.delta.content or "" for c in chunks)
    calls: dict[int, dict[str, str]] = {}
    for piece in (p for c in chunks for p in c.delta.tool_calls or ()):
        call = calls.setdefault(piece.index, {"name": "", "id": "", "arguments": ""})
        call["id"] += piece.id or ""
        call["name"] += piece.function.name or ""
        call["arguments"] += piece.function.arguments or ""
    assert [call["name"] for call in calls.values()] == ["weather"] * 2
    assert [json.loads(call["arguments"]) for call in calls.values()] == [{"city": "Oslo"}] * 2
    assert sum(len(c.delta.tool_calls or ()) for c in chunks) > 6, "arguments come in pieces"


def test_an_answer_without_a_call_is_content(stage: Stage) -> None:
    stage.say("It rains.", tools=[WEATHER])
    (choice,) = ask(stage, tools=[WEATHER]).choices
    assert choice.finish_reason == "stop" and choice.message.tool_calls is None
    assert choice.message.content == "It rains."


def test_choosing_none_offers_nothing(stage: Stage) -> None:
    stage.say(CALL, tools=[WEATHER], tool_choice="none")
    (choice,) = ask(stage, tools=[WEATHER], tool_choice="none").choices
    assert choice.message.content == CALL and choice.finish_reason == "stop"


def test_a_call_that_is_cut_off_says_so(stage: Stage) -> None:
    stage.say(CALL, tools=[WEATHER])
    (choice,) = ask(stage, tools=[WEATHER], max_completion_tokens=40).choices
    assert choice.finish_reason == "length"


def test_calls_and_results_go_back_into_the_prompt(stage: Stage) -> None:
    history = [
        *MESSAGES,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "snow"},
    ]
    stage.say("Snow!", messages=history, tools=[WEATHER])
    (choice,) = ask(stage, messages=history, tools=[WEATHER]).choices
    assert choice.message.content == "Snow!"


@pytest.fixture(scope="module")
def wild() -> Iterator[OpenAI]:
    """A model that babbles: only grammars make its answers calls."""
    with running(RandomModel(eager=3.0)) as server, server.client() as client:
        yield client


def demanded(wild: Any, choice: Any, **fields: Any) -> Any:
    body = {"tools": [WEATHER, TIME], "tool_choice": choice, **fields}
    answer = wild.chat.completions.create(model=MODEL, messages=MESSAGES, **body)
    return answer.choices[0]


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_demanded_calls_are_always_valid(wild: OpenAI, choice: Any) -> None:
    one = demanded(wild, choice, parallel_tool_calls=False, max_tokens=300, seed=1)
    assert one.finish_reason == "tool_calls" and one.message.content is None
    (call,) = one.message.tool_calls
    arguments = json.loads(call.function.arguments)
    if choice != "required":
        assert call.function.name == "weather"
    if call.function.name == "weather":
        jsonschema.validate(arguments, WEATHER["function"]["parameters"])


def test_several_calls_may_be_demanded(wild: OpenAI) -> None:
    reluctant = {str(id_): -8 for id_ in tiny_tokenizer().ending_ids}
    fields = {"tools": [WEATHER], "logit_bias": reluctant, "max_tokens": 300, "seed": 2}
    one = demanded(wild, "required", **fields)
    first, second, *_ = one.message.tool_calls
    assert first.id != second.id and isinstance(json.loads(first.function.arguments), dict)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": {}}, "tools", "a list"),
        ({"tools": [{"type": "web_search"}]}, "tools", "type 'function'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", "letters"),
        ({"tools": [WEATHER, WEATHER]}, "tools", "same name"),
        ({"tools": [WEATHER] * 200}, "tools", "more than 128"),
        ({"tool_choice": "required"}, "tool_choice", "needs 'tools'"),
        ({"tools": [TIME], "tool_choice": "any"}, "tool_choice", "must be"),
        (
            {"tools": [TIME], "tool_choice": {"function": {"name": "x"}}},
            "tool_choice",
            "not among",
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "parameters": {"not": {}}},
                    }
                ],
                "tool_choice": "required",
            },
            "tools",
            "tool 'f'",
        ),
        ({"tools": [TIME], "guided_regex": "a"}, "tools", "cannot both"),
        (
            {"messages": [*MESSAGES, {"role": "assistant", "tool_calls": [{"function": {}}]}]},
            "messages",
            "function with a name",
        ),
    ],
)
def test_what_is_wrong_with_tools_is_named(
    stage: Stage, fields: dict[str, Any], param: str, words: str
) -> None:
    body = {"messages": MESSAGES, **fields}
    answer = httpx.post(f"{stage.server.url}/v1/chat/completions", json=body, timeout=60)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and words in error["message"]
