"""Ollama's interface, asked by Ollama's own unmodified Python client."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest

from runtime.generation import GenerationParams
from tests.runtime.server.harness import MODEL, Running, ScriptedExecutor, tiny_tokenizer

MESSAGES = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "time"}}
GREEDY = {"temperature": 0, "num_predict": 8}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[ollama.Client]:
    one = ollama.Client(host=server.url, timeout=60)
    yield one
    one._client.close()


def oracle(num_prompt_tokens: int, num_tokens: int) -> str:
    return tiny_tokenizer().decode(ScriptedExecutor().answer(num_prompt_tokens, num_tokens))


def test_chat_whole(client: ollama.Client, server: Running) -> None:
    answer = client.chat(MODEL, MESSAGES, options=GREEDY)
    length = len(server.service.encode_chat(MESSAGES))
    assert answer.message.role == "assistant" and answer.message.content == oracle(length, 8)
    assert answer.model == MODEL and answer.done and answer.done_reason == "length"
    assert (answer.prompt_eval_count, answer.eval_count) == (length, 8)
    durations = (answer.load_duration, answer.prompt_eval_duration, answer.eval_duration)
    assert answer.total_duration is not None and all(one is not None for one in durations)
    assert 0 < sum(one or 0 for one in durations) <= answer.total_duration


def test_chat_streamed_is_the_same_text(client: ollama.Client, server: Running) -> None:
    parts = list(client.chat(MODEL, MESSAGES, stream=True, options=GREEDY))
    length = len(server.service.encode_chat(MESSAGES))
    assert "".join(part.message.content or "" for part in parts) == oracle(length, 8)
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) > 2 and parts[-1].eval_count == 8 and parts[0].eval_count is None


def test_lines_are_json_and_arrive_one_by_one(http: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": "a", "raw": True, "options": {**GREEDY, "num_predict": 60}}
    with http.stream("POST", "/api/generate", json=body) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in b"".join(answer.iter_raw()).splitlines()]
    assert "".join(line["response"] for line in lines) == oracle(1, 60), "U+2028 ends no line"
    assert all(line["model"] == MODEL and line["created_at"].endswith("Z") for line in lines)


def test_generate_renders_the_template_unless_raw(client: ollama.Client, server: Running) -> None:
    answer = client.generate(MODEL, "Hello", options=GREEDY)
    assert answer.prompt_eval_count == len(server.service.encode_chat(MESSAGES))
    system = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    answer = client.generate(MODEL, "Hello", system="Be brief.", options=GREEDY)
    assert answer.prompt_eval_count == len(server.service.encode_chat(system))
    answer = client.generate(MODEL, "Hello", raw=True, options=GREEDY)
    assert answer.prompt_eval_count == len(tiny_tokenizer().encode("Hello"))


def test_options_reach_the_engine(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[GenerationParams] = []
    submit = server.service.submit

    def spy(prompt: Any, params: GenerationParams) -> Any:
        seen.append(params)
        return submit(prompt, params)

    monkeypatch.setattr(server.service, "submit", spy)
    options = {
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.1,
        "seed": 3,
        "repeat_penalty": 1.5,
        "repeat_last_n": -1,
        "presence_penalty": 0.25,
        "frequency_penalty": 0.75,
        "num_predict": 4,
        "stop": ["xyz"],
        "num_thread": 3,
    }
    client = ollama.Client(host=server.url)
    client.generate(f"{MODEL}:latest", "Hello", options=options)
    client._client.close()
    (params,) = seen
    sampling = params.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 7, 0.9)
    assert (sampling.min_p, sampling.seed, sampling.repetition_penalty) == (0.1, 3, 1.5)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.25, 0.75)
    assert params.max_tokens == 4 and params.stop == ("xyz",)


def test_a_smaller_context_is_kept_to(client: ollama.Client, server: Running) -> None:
    length = len(server.service.encode_chat(MESSAGES))
    answer = client.chat(MODEL, MESSAGES, options={"temperature": 0, "num_ctx": length + 3})
    assert answer.eval_count == 3 and answer.done_reason == "length"
    for num_ctx in (length, 257):
        with pytest.raises(ollama.ResponseError, match=str(num_ctx)) as caught:
            client.chat(MODEL, MESSAGES, options={"num_ctx": num_ctx})
        assert caught.value.status_code == 400


def test_logprobs_are_given(client: ollama.Client) -> None:
    options = {"temperature": 0, "num_predict": 3}
    answer = client.generate(MODEL, "a", raw=True, logprobs=True, top_logprobs=2, options=options)
    assert answer.logprobs is not None and len(answer.logprobs) == 3
    assert all(len(one.top_logprobs or ()) == 2 and one.logprob <= 0 for one in answer.logprobs)


def test_the_catalogue(client: ollama.Client) -> None:
    (listed,) = client.list().models
    assert listed.model == MODEL and listed.modified_at is not None
    (loaded,) = client.ps().models
    assert loaded.name == MODEL and loaded.context_length == 256
    shown = client.show(MODEL)
    assert "im_start" in (shown.template or "") and shown.capabilities == [
        "completion",
        "embedding",
        "tools",
    ]
    assert 256 in dict(shown.modelinfo or {}).values()


def test_asking_for_nothing_says_that_the_model_is_loaded(client: ollama.Client) -> None:
    assert client.generate(MODEL).done_reason == "load"
    assert client.chat(MODEL).done_reason == "load"


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("generate", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("generate", {"prompt": "a", "images": ["aGk="]}, "images"),
        ("generate", {"prompt": "a", "context": [1, 2]}, "context"),
        ("generate", {"prompt": "a", "template": "{{ .Prompt }}"}, "template"),
        ("generate", {"prompt": "a", "raw": True, "system": "b"}, "system"),
        ("generate", {"prompt": "a", "think": True}, "does not think"),
        ("generate", {"prompt": "a", "options": {"mirostat": 2}}, "options.mirostat"),
        ("generate", {"prompt": "a", "options": {"colour": 2}}, "options.colour"),
        ("generate", {"prompt": "a", "options": {"temperature": "hot"}}, "temperature"),
        (
            "generate",
            {"prompt": "a", "options": {"repeat_penalty": 1.1, "repeat_last_n": 64}},
            "repeat_last_n",
        ),
        ("chat", {"messages": [{"role": "user", "content": "a", "images": ["aGk="]}]}, "images"),
        ("chat", {"messages": [{"content": "a"}]}, "messages[0]"),
        ("chat", {"messages": [{"role": "user", "content": ["a"]}]}, "messages[0]"),
        ("chat", {"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools[0]"),
        ("chat", {"messages": MESSAGES, "tools": [TOOL], "format": "json"}, "format"),
        ("chat", {"messages": MESSAGES, "format": "yaml"}, "format"),
        ("chat", {"messages": MESSAGES, "stream": 1}, "stream"),
        ("show", {}, "model"),
    ],
)
def test_what_is_not_done_is_refused_by_name(
    http: httpx.Client, path: str, body: dict[str, Any], named: str
) -> None:
    name = {} if path == "show" else {"model": MODEL}
    answer = http.post(f"/api/{path}", json={**name, **body})
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"] and named in answer.json()["error"]


def test_an_unknown_model_is_a_404(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="other") as caught:
        client.chat("other", MESSAGES)
    assert caught.value.status_code == 404
