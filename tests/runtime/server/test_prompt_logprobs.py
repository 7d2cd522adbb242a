"""Echoed prompts and their probabilities, against the executor's own logits."""

import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.runtime.server.harness import MODEL, Running, ScriptedExecutor, tiny_tokenizer
from tests.runtime.server.test_sse import payloads

PROMPT = "The press stands"


def logits_after(position: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """The oracle: the scripted row of one position, as log-probabilities."""
    executor = ScriptedExecutor()
    row = executor._base.astype(np.float64)
    row[executor.script[position % len(executor.script)]] = 20.0
    found: np.ndarray[Any, np.dtype[np.float64]] = row - np.log(np.exp(row).sum())
    return found


def post(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/completions", json={"model": MODEL, "prompt": PROMPT, **fields})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def check_prompt(logprobs: dict[str, Any], ids: list[int]) -> None:
    texts = [tiny_tokenizer().token_bytes(id_).decode() for id_ in ids]
    assert logprobs["tokens"][: len(ids)] == texts
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    for place, id_ in enumerate(ids[1:], 1):
        row = logits_after(place - 1)
        assert logprobs["token_logprobs"][place] == pytest.approx(row[id_], abs=1e-4)
        best = tiny_tokenizer().token_bytes(int(row.argmax())).decode(errors="replace")
        top = logprobs["top_logprobs"][place]
        assert next(iter(top)) == best and top[best] == pytest.approx(row.max(), abs=1e-4)
        assert texts[place] in top
    offsets = logprobs["text_offset"][: len(ids) + 1]
    assert offsets == [len("".join(texts[:place])) for place in range(len(offsets))]


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_the_prompt_is_echoed_with_its_probabilities(http: httpx.Client, max_tokens: int) -> None:
    """As lm-evaluation-harness asks: it reads the slice [context:-1] of the lists."""
    ids = tiny_tokenizer().encode(PROMPT)
    answer = post(http, max_tokens=max_tokens, echo=True, logprobs=1)
    (choice,) = answer["choices"]
    added = tiny_tokenizer().decode(ScriptedExecutor().answer(len(ids), max_tokens))
    assert choice["text"] == PROMPT + added
    assert choice["finish_reason"] == "length"
    assert {len(values) for values in choice["logprobs"].values()} == {len(ids) + max_tokens}
    check_prompt(choice["logprobs"], ids)
    assert answer["usage"]["completion_tokens"] == max_tokens


def test_token_ids_are_echoed_as_text(http: httpx.Client) -> None:
    ids = [1, *tiny_tokenizer().encode(PROMPT)]
    (one, two) = post(http, prompt=[ids, ids[1:]], max_tokens=1, echo=True, logprobs=2)["choices"]
    assert one["text"].startswith("<|im_start|>" + PROMPT) and two["text"].startswith(PROMPT)
    check_prompt(one["logprobs"], ids)
    check_prompt(two["logprobs"], ids[1:])


def test_an_echo_without_probabilities(http: httpx.Client) -> None:
    for max_tokens in (0, 2):
        (choice,) = post(http, max_tokens=max_tokens, echo=True)["choices"]
        assert choice["text"].startswith(PROMPT) and choice["logprobs"] is None


def test_an_echo_comes_with_the_first_chunk_of_each_choice(http: httpx.Client) -> None:
    ids = tiny_tokenizer().encode(PROMPT)
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 3, "echo": True, "n": 2}
    raw = http.post("/v1/completions", json={**body, "logprobs": 1, "stream": True}).content
    for index in (0, 1):
        mine = [c["choices"][0] for c in payloads(raw) if c["choices"][0]["index"] == index]
        added = tiny_tokenizer().decode(ScriptedExecutor().answer(len(ids), 3))
        assert "".join(choice["text"] for choice in mine) == PROMPT + added
        assert mine[0]["text"].startswith(PROMPT) and len(mine) == 3
        check_prompt(mine[0]["logprobs"], ids)
        assert mine[1]["logprobs"]["text_offset"][0] > len(PROMPT)


def test_vllms_form_is_by_token_id(http: httpx.Client, server: Running) -> None:
    ids = tiny_tokenizer().encode(PROMPT)
    (choice,) = post(http, max_tokens=1, prompt_logprobs=2)["choices"]
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    answer = http.post("/v1/chat/completions", json={**chat, "prompt_logprobs": 2}).json()
    talk = server.service.encode_chat([{"role": "user", "content": "Hi"}])
    for found, prompt in ((choice["prompt_logprobs"], ids), (answer["prompt_logprobs"], talk)):
        assert found[0] is None and len(found) == len(prompt)
        for place, entries in enumerate(found[1:], 1):
            row = logits_after(place - 1)
            assert entries[str(prompt[place])]["logprob"] == pytest.approx(
                row[prompt[place]], abs=1e-4
            )
            ranked = {entry["rank"]: int(id_) for id_, entry in entries.items()}
            assert ranked[1] == int(row.argmax()) and 2 in ranked


def test_a_prompt_that_is_only_read_needs_a_reason(http: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 0}
    answer = http.post("/v1/completions", content=json.dumps(body))
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "max_tokens"
