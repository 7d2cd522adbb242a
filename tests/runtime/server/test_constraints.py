"""Constrained answers, in the fields of OpenAI, vLLM, SGLang and llama.cpp."""

import json
import re
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from openai import OpenAI
from pydantic import BaseModel

from runtime.text.grammar.check import MAX_BYTES, grammar_pool
from tests.runtime.confined.harness import halted, processor_seconds
from tests.runtime.server.harness import MODEL, Running, running
from tests.runtime.text.grammar.harness import RandomModel
from tests.waiting import PATIENCE_SECONDS

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"enum": [7, 8]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
NAMED = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
MESSAGES = [{"role": "user", "content": "Hi"}]


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(RandomModel(eager=3.0)) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    with server.client() as one:
        yield one


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as one:
        yield one


def ask(http: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"messages": MESSAGES, "max_tokens": 300, "seed": 1, **fields}
    return http.post("/v1/chat/completions", json=body)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    assert choice["finish_reason"] == "stop", choice
    return str(choice["message"]["content"])


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": NAMED},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"structured_outputs": {"json": SCHEMA, "regex": None}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
        {"guided_json": SCHEMA},
        {"json_schema": SCHEMA},
    ],
)
def test_every_way_to_ask_for_a_schema(http: httpx.Client, fields: dict[str, Any]) -> None:
    person = json.loads(text_of(ask(http, **fields)))
    assert person.keys() == {"name", "age"} and person["age"] in (7, 8)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_regex": "[ab]{3}-[0-9]"}, "[ab]{3}-[0-9]"),
        ({"regex": "x|yz"}, "x|yz"),
        ({"structured_outputs": {"choice": ["a/b", 'c "d"']}}, 'a/b|c "d"'),
        ({"guided_choice": ["oui", "non"]}, "oui|non"),
        ({"grammar": 'root ::= "(" [0-9] ")" | root2\nroot2 ::= "n"{2}'}, r"\([0-9]\)|nn"),
        ({"guided_grammar": 'root ::= "yes"'}, "yes"),
        ({"guided_grammar": 'start: "a" B\nB: /[0-9]/'}, "a[0-9]"),
        ({"response_format": {"type": "regex", "pattern": "[xy]"}}, "[xy]"),
    ],
)
def test_expressions_and_grammars(http: httpx.Client, fields: dict[str, Any], pattern: str) -> None:
    assert re.fullmatch(pattern, text_of(ask(http, **fields)))


def test_any_json_object(http: httpx.Client) -> None:
    assert isinstance(json.loads(text_of(ask(http, response_format={"type": "json_object"}))), dict)


def test_plain_completions_are_constrained_too(client: OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL,
        prompt=["One", "Two"],
        max_tokens=200,
        extra_body={"response_format": NAMED, "ignore_eos": True, "min_tokens": 150},
    )
    assert [Person.model_validate_json(c.text).age in (7, 8) for c in answer.choices] == [True] * 2
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}


def test_the_clients_own_parsing(client: OpenAI) -> None:
    class Strict(BaseModel):
        """pydantic's schema, as the client sends it."""

        kind: bool
        tag: None

    answer = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Hi"}],
        response_format=Strict,
        max_tokens=300,
    )
    assert isinstance(answer.choices[0].message.parsed, Strict)


def test_a_stream_adds_up_to_a_document(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hi"}],
        response_format=NAMED,  # type: ignore[call-overload]
        max_tokens=300,
        stream=True,
        logprobs=True,
    )
    choices = [chunk.choices[0] for chunk in stream]
    Person.model_validate_json("".join(choice.delta.content or "" for choice in choices))
    assert [c.finish_reason for c in choices if c.finish_reason] == ["stop"]


def test_what_the_limit_cuts_off_says_so(http: httpx.Client) -> None:
    answer = ask(http, response_format=NAMED, max_tokens=3).json()["choices"][0]
    assert answer["finish_reason"] == "length"
    with pytest.raises(ValueError):
        json.loads(answer["message"]["content"])


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"guided_json": {"not": {}}}, "guided_json", "'not' at /"),
        ({"response_format": {"type": "xml"}}, "response_format", "type is text"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema.schema"),
        ({"response_format": NAMED, "regex": "a"}, "regex", "only one"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs", "structural_tag"),
        ({"guided_choice": []}, "guided_choice", "a list of texts"),
        ({"guided_choice": "ab"}, "guided_choice", "a list of texts"),
        ({"guided_regex": "(?=a)b"}, "guided_regex", "look-around"),
        ({"guided_regex": 7}, "guided_regex", "must hold a text"),
        ({"grammar": "root ::= other"}, "grammar", "does not define 'other'"),
        ({"guided_grammar": "start: <|im_end|>"}, "guided_grammar", "special_token"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "not supported"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], param: str, words: str
) -> None:
    answer = ask(http, **fields)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and words in error["message"]


@pytest.mark.parametrize(
    ("fields", "may_hold"),
    [
        ({"guided_regex": "(a+)+$"}, True),
        ({"guided_regex": "a{1,100000}"}, True),
        ({"guided_regex": "(" * 60_000}, False),
        ({"guided_regex": "(" * 20_000 + "a" + ")" * 20_000}, False),
        ({"guided_regex": ".*" * 30_000}, False),
        ({"guided_regex": "((((a{1,999}){1,999}){1,999}b){1,999}c?){1,999}"}, True),
        ({"guided_json": {"enum": ["x" * 100] * 100_000}}, False),
        ({"guided_json": {"$ref": "#"}}, True),
        ({"guided_json": {"$ref": "http://127.0.0.1:9/schema"}}, False),
        ({"guided_json": {"$schema": "http://127.0.0.1:9/schema", "type": "object"}}, False),
        ({"guided_json": '{"items":' * 5000 + "{}" + "}" * 5000}, False),
        ({"guided_json": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}, False),
    ],
)
def test_bombs_are_over_soon(http: httpx.Client, fields: dict[str, Any], may_hold: bool) -> None:
    """Case A5: refused within the budget (or served, where it is no bomb to an automaton), and the
    processor is idle again."""
    start = time.monotonic()
    answer = ask(http, **fields, max_tokens=1)
    assert time.monotonic() - start < PATIENCE_SECONDS / 2
    assert answer.status_code in ((200, 400) if may_hold else (400, 413)), answer.text
    assert len(answer.content) < 4096
    before = [processor_seconds(pid) for pid in grammar_pool().pids]
    assert ask(http, guided_regex="a").status_code == 200
    for pid, spent in zip(grammar_pool().pids, before, strict=True):
        assert processor_seconds(pid) - spent < 2


def test_too_large_is_told_with_the_limit(http: httpx.Client) -> None:
    answer = ask(http, guided_regex="a" * (MAX_BYTES + 1))
    assert answer.status_code == 400 and str(MAX_BYTES) in answer.json()["error"]["message"]


def test_others_are_served_while_a_bomb_goes_off(
    server: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = grammar_pool()
    assert ask(http, guided_regex="a").status_code == 200, "its process is warm"
    monkeypatch.setattr(pool, "seconds", PATIENCE_SECONDS)
    body = {"prompt": "a", "guided_regex": ".*" * 30_000}
    # Longer than its work may take, on a machine that does other work.
    post = partial(httpx.post, f"{server.url}/v1/completions", timeout=5 * PATIENCE_SECONDS)
    with halted(pool, partial(post, json=body)) as bomb:
        for _ in range(4):
            assert ask(http, max_tokens=3).status_code == 200
        assert not bomb.done()
    assert bomb.result().status_code == 400
