"""Function tools over the responses interface, as the unmodified openai client offers them."""

import json
from typing import Any

import httpx
import openai
import pytest

from runtime.engine.request import RequestError
from runtime.server.responses_input import messages_of_input
from runtime.server.responses_schema import ResponseBody
from tests.runtime.server.harness import MODEL, running
from tests.runtime.server.stage import CALL, WEATHER, Stage
from tests.runtime.server.test_responses import events_of
from tests.runtime.text.grammar.harness import RandomModel

FLAT: list[Any] = [{"type": "function", **WEATHER["function"]}]


def ask(stage: Stage, **fields: Any) -> Any:
    body = {"input": "Rain?", "tools": FLAT, "max_output_tokens": 200, **fields}
    return stage.client.responses.create(model=MODEL, temperature=0, **body)


def test_calls_are_items_after_the_text(stage: Stage) -> None:
    stage.say(f"I look.\n{CALL}\n{CALL}", tools=[WEATHER])
    answer = ask(stage)
    message, first, second = answer.output
    assert answer.status == "completed" and answer.output_text == "I look."
    assert message.type == "message" and {first.type, second.type} == {"function_call"}
    assert first.name == "weather" and json.loads(first.arguments) == {"city": "Oslo"}
    assert first.call_id != second.call_id and first.call_id.startswith("call_")
    assert first.id != second.id and first.status == "completed"
    assert (answer.tool_choice, answer.parallel_tool_calls) == ("auto", True)
    assert answer.tools[0].name == "weather"


def test_the_events_of_a_call(stage: Stage) -> None:
    stage.say(f"I look.\n{CALL}", tools=[WEATHER])
    body = {"input": "Rain?", "tools": FLAT, "stream": True, "temperature": 0}
    answer = httpx.post(f"{stage.server.url}/v1/responses", json=body, timeout=60)
    events = events_of(answer.content)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert list(dict.fromkeys(kinds)) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "completed",
    ]
    of_call = [event for event in events if event.get("output_index") == 1]
    added, *deltas, done, closed = of_call
    assert added["item"]["arguments"] == "" and added["item"]["status"] == "in_progress"
    assert len(deltas) > 3 and "".join(one["delta"] for one in deltas) == done["arguments"]
    assert {one["item_id"] for one in [*deltas, done]} == {closed["item"]["id"]}
    assert closed["item"] == events[-1]["response"]["output"][1]
    assert closed["item"]["status"] == "completed" and done["name"] == "weather"


def test_the_client_puts_a_stream_together(stage: Stage) -> None:
    stage.say(f"{CALL}\n{CALL}", tools=[WEATHER])
    with stage.client.responses.stream(
        model=MODEL, input="Rain?", tools=FLAT, temperature=0
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    calls: list[Any] = final.output
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [
        ("weather", {"city": "Oslo"})
    ] * 2


def test_a_call_that_is_cut_off_is_incomplete(stage: Stage) -> None:
    stage.say(CALL, tools=[WEATHER])
    answer = ask(stage, max_output_tokens=40)
    assert answer.status == "incomplete" and answer.output[0].status == "incomplete"


def test_what_came_out_goes_in_again(stage: Stage) -> None:
    """The turns of an agent: its model's output as it is, then what the function gave."""
    stage.say(f"I look.\n{CALL}", tools=[WEATHER])
    first = ask(stage)
    result = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "Sun."}
    talk = [{"role": "user", "content": "Rain?"}, *first.output, result]
    call = {
        "id": first.output[1].call_id,
        "type": "function",
        "function": {"name": "weather", "arguments": first.output[1].arguments},
    }
    chat: list[Any] = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "Sun."},
    ]
    tools: list[Any] = [WEATHER]
    as_chat = stage.client.chat.completions.create(
        model=MODEL, messages=chat, tools=tools, max_tokens=1
    )
    assert as_chat.usage is not None
    answer = ask(stage, input=talk, max_output_tokens=1)
    assert answer.usage.input_tokens == as_chat.usage.prompt_tokens


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_a_call_that_is_demanded_comes(choice: Any) -> None:
    with running(RandomModel(eager=3.0)) as server, server.client() as client:
        for seed in range(3):
            answer = client.responses.create(
                model=MODEL,
                input="Rain?",
                tools=FLAT,
                tool_choice=choice,
                parallel_tool_calls=False,
                extra_body={"seed": seed},
            )
            call: Any = answer.output[-1]
            assert call.type == "function_call" and call.name == "weather"
            assert json.loads(call.arguments)["city"] in ("Oslo", "Rome")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tools", [{"type": "web_search"}], "is a 'web_search'"),
        ("tools", [WEATHER], r"tools\[0\].name"),
        ("tools", ["weather"], "is a 'str'"),
        ("tools", {"type": "function"}, "must be a list"),
        ("tool_choice", {"type": "function", "name": "nothing"}, "not among the tools"),
        ("tool_choice", {"type": "allowed_tools", "tools": []}, "'none', 'auto', 'required'"),
        ("tool_choice", "always", "'none', 'auto', 'required'"),
    ],
)
def test_tools_that_are_none_are_refused(
    stage: Stage, field: str, value: Any, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        ask(stage, **{field: value})
    assert refused.value.param == field


def test_tools_and_a_constraint_exclude_each_other(stage: Stage) -> None:
    text = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError, match="cannot both hold"):
        ask(stage, text=text)


def given(items: list[Any]) -> ResponseBody:
    return ResponseBody.model_validate({"input": items})


CALLED = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"type": "function_call_output", "call_id": "x", "output": "y"}, "answers no call"),
        ({"type": "function_call_output", "call_id": "c"}, "only text parts"),
        ({**CALLED, "arguments": "[]"}, "text of a JSON object"),
        ({**CALLED, "arguments": {}}, r"arguments must be a string"),
        ({**CALLED, "call_id": None}, r"call_id must be a string"),
        ({"type": "computer_call"}, "is a 'computer_call'"),
        ({"content": "Hi"}, r"role must be a string"),
        (5, "is a 'int'"),
    ],
)
def test_items_that_are_none_are_refused(item: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        messages_of_input(given([CALLED, item]), None)
    assert refused.value.param == "input"


def test_thoughts_stay_with_their_answer() -> None:
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]}
    text = {"role": "assistant", "content": "Yes."}
    found = messages_of_input(given([thought, text, CALLED, text, thought]), None)
    assert [message.get("content") for message in found] == ["Yes.", "Yes."]
    assert [message["reasoning_content"] for message in found] == ["Hm.", "Hm."]
    assert len(found[0]["tool_calls"]) == 1 and "tool_calls" not in found[1]
