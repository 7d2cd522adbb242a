"""The responses interface: the openai client reads it, and its events come in order."""

import json
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from runtime.engine.request import SamplingParams
from runtime.generation import Generation, GenerationParams, TextDelta
from runtime.server.message_reader import PlainReader, ReasoningReader
from runtime.server.responses_answer import ResponseAnswer
from runtime.server.responses_schema import ResponseBody
from tests.runtime.server.harness import MODEL, Running, ScriptedExecutor, running, tiny_tokenizer

PROMPT_TOKENS = 17


def expected(num_tokens: int, num_prompt_tokens: int = PROMPT_TOKENS) -> str:
    return tiny_tokenizer().decode(ScriptedExecutor().answer(num_prompt_tokens, num_tokens))


def events_of(raw: bytes) -> list[dict[str, Any]]:
    """Each event has its name, and its data say it again; nothing else is on the wire."""
    assert raw.endswith(b"\n\n") and raw.isascii()
    events = []
    for block in raw[:-2].split(b"\n\n"):
        name, data = block.split(b"\n")
        event = json.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


@pytest.mark.parametrize(
    "given",
    [
        "Hi",
        [{"role": "user", "content": "Hi"}],
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
    ],
)
def test_an_answer_and_its_usage(client: OpenAI, given: Any) -> None:
    answer = client.responses.create(model=MODEL, input=given, max_output_tokens=20)
    assert answer.output_text == expected(20)
    assert answer.object == "response" and answer.model == MODEL
    assert answer.model_dump()["store"] is False
    assert answer.status == "incomplete" and answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.input_tokens == PROMPT_TOKENS and answer.usage.output_tokens == 20
    assert answer.usage.total_tokens == PROMPT_TOKENS + 20
    assert answer.usage.input_tokens_details.cached_tokens in (0, 8, 16)
    (message,) = answer.output
    assert message.type == "message" and message.status == "incomplete"


def test_instructions_and_earlier_turns_come_before(server: Running, client: OpenAI) -> None:
    talk: list[Any] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        {"role": "user", "content": "c"},
    ]
    answer = client.responses.create(
        model=MODEL,
        instructions="Be kind.",
        input=talk,
        max_output_tokens=1,
    )
    flat = [
        {"role": "system", "content": "Be kind."},
        talk[0],
        {**talk[1], "content": "b"},
        talk[2],
    ]
    assert answer.usage is not None
    assert answer.usage.input_tokens == len(server.service.encode_chat(flat))


def test_the_events_of_a_stream(http: httpx.Client) -> None:
    body = {"model": MODEL, "input": "Hi", "max_output_tokens": 6, "stream": True}
    answer = http.post("/v1/responses", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.content)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 6,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    text = "".join(event.get("delta", "") for event in events)
    assert text == expected(6) == events[-4]["text"]
    last = events[-1]["response"]
    assert last["output"][0]["content"][0]["text"] == text
    assert last["usage"]["output_tokens"] == 6 and events[0]["response"]["usage"] is None
    names = {event["item_id"] for event in events if "item_id" in event}
    assert names == {last["output"][0]["id"]}
    assert events[0]["response"]["id"] == last["id"]


def test_an_ending_token_completes_the_response() -> None:
    letters = tiny_tokenizer().encode("abc")
    script = [*letters, 2]
    turn = -(PROMPT_TOKENS - 1) % len(script)
    with running(ScriptedExecutor(script[turn:] + script[:turn])) as server:
        with server.client() as client:
            answer = client.responses.create(model=MODEL, input="Hi")
            with client.responses.stream(model=MODEL, input="Hi") as stream:
                kinds = [event.type for event in stream]
                final = stream.get_final_response()
        body = {"input": "Hi", "stream": True}
        events = events_of(httpx.post(f"{server.url}/v1/responses", json=body, timeout=60).content)
    assert answer.status == "completed" and answer.output_text == "abc"
    assert (
        final.output_text == "abc" and kinds.count("response.output_text.delta") == len(letters) + 1
    )
    assert answer.incomplete_details is None and answer.output[0].status == "completed"  # type: ignore[union-attr]
    assert events[-1]["type"] == "response.completed"


def test_a_failure_in_the_middle_is_the_last_event() -> None:
    steps = 0

    def fail_later() -> None:
        nonlocal steps
        steps += 1
        if steps > 3:
            raise RuntimeError("the plates are jammed")

    with running(ScriptedExecutor(hold=fail_later)) as server:
        body = {"input": "Hi", "stream": True}
        events = events_of(httpx.post(f"{server.url}/v1/responses", json=body, timeout=60).content)
    assert events[-1]["type"] == "response.failed"
    assert "jammed" in events[-1]["response"]["error"]["message"]
    assert events[-1]["response"]["status"] == "failed"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("store", True),
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("background", True),
        ("include", ["reasoning.encrypted_content"]),
        ("truncation", "auto"),
        ("text", {"format": {"type": "json_schema", "name": "x"}}),
        ("text", {"format": {"type": "poem"}}),
        ("input", None),
        ("input", []),
        ("input", [{"type": "function_call_output", "call_id": "1", "output": "x"}]),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
        ("input", [{"role": "user", "content": 5}]),
        ("max_output_tokens", 0),
        ("n", 2),
        ("max_tokens", 5),
        ("max_completion_tokens", 5),
        ("prompt_logprobs", 1),
        ("return_token_ids", True),
        ("timings_per_token", True),
        ("top_logprobs", 2),
        ("max_tool_calls", 1),
        ("prompt", {"id": "pmpt_1"}),
        ("service_tier", "flex"),
        ("text", {"verbosity": "low"}),
        ("reasoning", {"summary": "detailed"}),
        ("reasoning", {"effort": "high"}),
        ("input", [{"role": "wizard", "content": "Hi"}]),
    ],
)
def test_what_would_be_dropped_is_refused(client: OpenAI, field: str, value: object) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input="Hi", extra_body={field: value})
    assert refused.value.param == field


def test_thoughts_are_an_item_of_their_own() -> None:
    generation = Generation("r", 3, GenerationParams(), tiny_tokenizer(), lambda name: None)
    reader = ReasoningReader(PlainReader(), inside=True)
    body = ResponseBody.model_validate({"input": "Hi"})
    answer = ResponseAnswer(MODEL, body, SamplingParams(), generation, reader)
    pieces = ["Let ", "me see.", "</think>", "\n\nYes", "."]
    deltas = [TextDelta(text, 5) for text in pieces] + [TextDelta("", None, None, "stop")]
    events = [*answer.begin(), *(event for delta in deltas for event in answer.feed(delta))]
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    thoughts, message = events[-1]["response"]["output"]
    assert thoughts["content"] == [{"type": "reasoning_text", "text": "Let me see."}]
    assert message["content"][0]["text"] == "Yes."
    assert [e["output_index"] for e in events if "output_index" in e] == [0] * 7 + [1] * 8
    usage = events[-1]["response"]["usage"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": 2}
