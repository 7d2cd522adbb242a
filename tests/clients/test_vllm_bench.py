"""What `vllm bench serve` sends and reads, request by request.

Its requests, as its backends "openai" and "openai-chat" write them (vLLM
0.33), each with its own fields and headers; and its way of reading a stream, which takes every
piece of the connection apart as it comes. From the answer it takes time and text of each chunk with
choices, and the counts of the one whose choices are empty. Without a model it takes `root` of the
first card of /v1/models.
"""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.runtime.server.harness import MODEL, ScriptedExecutor, tiny_tokenizer

HEADERS = {"Authorization": "Bearer none", "x-request-id": "bench-0"}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
PROMPT = "The press"


def completions(prompt: str | list[int], tokens: int, logprobs: int | None) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": prompt, "repetition_penalty": 1.0, "max_tokens": tokens}
    return {**body, "logprobs": logprobs, **STREAM}


def chat(content: Any, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": MODEL, "messages": messages, "max_completion_tokens": tokens, **STREAM}


@dataclass
class Read:
    """tokens: chunks that the benchmark takes for one each."""

    text: str = ""
    tokens: int = 0
    usage: dict[str, int] | None = None


def messages_of(pieces: Iterator[bytes]) -> Iterator[str]:
    """Whole events, from pieces of any size whose ends are stripped."""
    decoder, waiting = codecs.getincrementaldecoder("utf-8")(), ""
    for piece in pieces:
        waiting += decoder.decode(piece.strip())
        *whole, waiting = waiting.split("\n\n")
        yield from (event.strip() for event in whole if event.strip())
        rest = waiting.removeprefix("data: ").strip()
        if waiting.startswith("data: ") and (rest == "[DONE]" or is_json(rest)):
            yield waiting.strip()
            waiting = ""


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def read(http: httpx.Client, path: str, body: dict[str, Any]) -> Read:
    found = Read()
    with http.stream("POST", path, json=body, headers=HEADERS) as answer:
        assert answer.status_code == 200 and answer.headers["x-request-id"] == "bench-0"
        for message in messages_of(answer.iter_raw()):
            data = message.removeprefix("data: ")
            if message.startswith(":") or data == "[DONE]":
                continue
            event = json.loads(data)
            if choices := event.get("choices"):
                delta = choices[0].get("delta")
                # A chat's first chunk has the role alone; it is where the clock starts.
                found.tokens += delta is None or "role" not in delta
                found.text += (choices[0]["text"] if delta is None else delta.get("content")) or ""
            elif usage := event.get("usage"):
                found.usage = usage
    return found


def expected(num_prompt_tokens: int, num_tokens: int) -> str:
    return tiny_tokenizer().decode(ScriptedExecutor().answer(num_prompt_tokens, num_tokens))


@pytest.mark.parametrize("logprobs", [None, 2])
@pytest.mark.parametrize("extra", [{}, {"ignore_eos": True}, {"temperature": 0.0, "top_p": 0.9}])
def test_the_openai_backend(
    http: httpx.Client, logprobs: int | None, extra: dict[str, Any]
) -> None:
    ids = tiny_tokenizer().encode(PROMPT)
    for prompt in (PROMPT, ids):
        found = read(http, "/v1/completions", {**completions(prompt, 40, logprobs), **extra})
        assert found.text == expected(len(ids), 40) and found.tokens == 40
        assert found.usage is not None
        counts = (found.usage["prompt_tokens"], found.usage["completion_tokens"])
        assert counts == (len(ids), 40)


@pytest.mark.parametrize("content", ["Hi", [{"type": "text", "text": "Hi"}]])
@pytest.mark.parametrize(
    "extra",
    [{}, {"ignore_eos": True}, {"repetition_penalty": 1.0}, {"temperature": 0.0, "top_k": -1}],
)
def test_the_openai_chat_backend(http: httpx.Client, content: Any, extra: dict[str, Any]) -> None:
    found = read(http, "/v1/chat/completions", {**chat(content, 40), **extra})
    assert found.text == expected(17, 40) and found.tokens == 40
    assert found.usage is not None
    assert (found.usage["prompt_tokens"], found.usage["completion_tokens"]) == (17, 40)


def test_side_requests_answer(http: httpx.Client) -> None:
    assert http.get("/v1/models").json()["data"][0]["root"] == MODEL
    tokens = http.post("/tokenize", json={"model": MODEL, "prompt": PROMPT}).json()["tokens"]
    assert tokens == tiny_tokenizer().encode(PROMPT)
    text = http.post("/detokenize", json={"model": MODEL, "tokens": tokens}).json()["prompt"]
    assert text == PROMPT
    assert http.get("/metrics").status_code == http.get("/health").status_code == 200
