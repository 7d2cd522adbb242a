"""KServe's protocol: paths, shapes and errors."""

import json

import httpx
import pytest

from tests.runtime.server.harness import MODEL, Running, ScriptedExecutor, tiny_tokenizer

GENERATE = f"/v2/models/{MODEL}/generate"


def oracle(num_tokens: int) -> str:
    return tiny_tokenizer().decode(ScriptedExecutor().answer(1, num_tokens))


def test_health_and_metadata(http: httpx.Client) -> None:
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"live": True, "ready": True}
    assert http.get("/v2").json()["extensions"] == ["generate"]
    for path in (f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/versions/1"):
        assert http.get(f"{path}/ready").json() == {"name": MODEL, "ready": True}
        model = http.get(path).json()
        assert model["name"] == MODEL and model["versions"] == ["1"]
        assert model["inputs"][0] == {"name": "text_input", "datatype": "BYTES", "shape": [1]}


def test_generate_answers_with_details(http: httpx.Client) -> None:
    parameters = {"max_tokens": 5, "temperature": 0, "details": True}
    body = {"id": "one", "text_input": "a", "parameters": parameters}
    answer = http.post(GENERATE, json=body).json()
    assert answer["text_output"] == oracle(5)
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("one", MODEL, "1")
    assert answer["details"]["finish_reason"] == "length"
    tokens = answer["details"]["logprobs"]
    assert [token["id"] for token in tokens] == ScriptedExecutor().answer(1, 5)
    assert all(token["logprob"] <= 0 and token["special"] is False for token in tokens)


def test_an_answer_has_twenty_tokens_unless_told_otherwise(http: httpx.Client) -> None:
    body = {"text_input": "a", "parameters": {"temperature": 0}}
    answer = http.post(f"/v2/models/{MODEL}/versions/1/generate", json=body).json()
    assert answer == {"model_name": MODEL, "model_version": "1", "text_output": oracle(20)}


def test_a_stream_is_the_same_text(http: httpx.Client) -> None:
    body = {"text_input": "a", "parameters": {"max_tokens": 6, "temperature": 0, "details": True}}
    with http.stream("POST", f"{GENERATE}_stream", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: {") for line in lines)
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert "".join(event["text_output"] for event in events) == oracle(6)
    assert [event["details"]["finish_reason"] for event in events[-2:]] == [None, "length"]


def test_stop_strings_and_ends_are_told_apart(http: httpx.Client) -> None:
    stop = oracle(8)[-3:]
    parameters = {"max_tokens": 20, "temperature": 0, "details": True, "stop": [stop]}
    answer = http.post(GENERATE, json={"text_input": "a", "parameters": parameters}).json()
    assert answer["details"]["finish_reason"] == "stop_sequence"
    assert answer["text_output"] == oracle(20).split(stop)[0]


@pytest.mark.parametrize(
    ("path", "body", "status", "named"),
    [
        (GENERATE, {"text_input": 5}, 400, "text_input"),
        (GENERATE, {"text_input": "a", "parameters": {"colour": 1}}, 400, "colour"),
        (GENERATE, {"text_input": "a", "parameters": {"n": 2}}, 400, "parameters.n"),
        (GENERATE, {"text_input": "a", "parameters": {"temperature": -1}}, 400, "temperature"),
        (GENERATE, {"text_input": "a", "parameters": {"details": 1}}, 400, "details"),
        (GENERATE, {"text_input": "a", "max_tokens": 5}, 400, "'max_tokens' belongs into"),
        (GENERATE, {"text_input": "a", "stream": True}, 400, "generate_stream"),
        (f"{GENERATE}_stream", {"text_input": "a", "stream": False}, 400, ".../generate"),
        (GENERATE, {"text_input": "a" * 4000}, 400, "context"),
        ("/v2/models/other/generate", {"text_input": "a"}, 404, "other"),
        (f"/v2/models/{MODEL}/versions/2/generate", {"text_input": "a"}, 404, "version"),
        ("/v2/nowhere", {}, 404, "no route"),
    ],
)
def test_errors_are_one_line_of_text(
    http: httpx.Client, path: str, body: dict[str, object], status: int, named: str
) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"] and named in answer.json()["error"]


def test_a_missing_key_is_told_in_the_same_shape(server: Running) -> None:
    from runtime.server.errors import ApiError, error_response

    body = json.loads(bytes(error_response(ApiError(401, "no key"), GENERATE).body))
    assert body == {"error": "no key"}
