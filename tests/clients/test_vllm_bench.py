"""What `vllm bench serve` sends and reads, request by request.

Its requests: a stream with usage, `ignore_eos`, `repetition_penalty`, null logprobs, chat content
as a list of parts, an x-request-id and a bearer token. What it takes from the answer: time and text
of each chunk with choices, and the counts of the one whose choices are empty. Without a model it
takes `root` of the first card of /v1/models.
"""

import json
from typing import Any

import httpx

from tests.runtime.server.harness import MODEL, ScriptedExecutor, tiny_tokenizer

HEADERS = {"Authorization": "Bearer none", "x-request-id": "bench-0"}


def read(http: httpx.Client, path: str, body: dict[str, Any]) -> tuple[str, int, dict[str, int]]:
    """As the benchmark reads a stream: text, number of chunks that count as tokens, usage."""
    text, chunks, usage = "", 0, {}
    with http.stream("POST", path, json=body, headers=HEADERS) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if not line or line.startswith(":"):
                continue
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                continue
            event = json.loads(data)
            if choices := event["choices"]:
                piece = choices[0].get("text")
                piece = choices[0].get("delta", {}).get("content") if piece is None else piece
                role = choices[0].get("delta", {}).get("role")
                chunks += piece is not None and role is None
                text += piece or ""
            elif event.get("usage"):
                usage = event["usage"]
    return text, chunks, usage


def expected(num_prompt_tokens: int, num_tokens: int) -> str:
    return tiny_tokenizer().decode(ScriptedExecutor().answer(num_prompt_tokens, num_tokens))


def test_completions(http: httpx.Client) -> None:
    model = http.get("/v1/models").json()["data"][0]["root"]
    body = {
        "model": model,
        "prompt": "The press",
        "repetition_penalty": 1.0,
        "max_tokens": 40,
        "logprobs": None,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    text, chunks, usage = read(http, "/v1/completions", body)
    count = len(tiny_tokenizer().encode("The press"))
    assert text == expected(count, 40) and chunks == 40
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (count, 40)


def test_chats(http: httpx.Client) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        "repetition_penalty": 1.0,
        "max_completion_tokens": 40,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    text, chunks, usage = read(http, "/v1/chat/completions", body)
    assert text == expected(17, 40) and chunks == 40
    assert usage["completion_tokens"] == 40


def test_side_requests_answer(http: httpx.Client) -> None:
    tokens = http.post("/tokenize", json={"model": MODEL, "prompt": "The press"}).json()["tokens"]
    assert tokens == tiny_tokenizer().encode("The press")
    text = http.post("/detokenize", json={"model": MODEL, "tokens": tokens}).json()["prompt"]
    assert text == "The press"
    assert http.get("/metrics").status_code == http.get("/health").status_code == 200
