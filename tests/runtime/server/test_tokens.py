"""Tokenizing over HTTP, against the tokenizer itself."""

import httpx
import pytest

from tests.runtime.server.harness import MODEL, SCRIPT, Running, tiny_tokenizer
from tests.runtime.server.stage import Stage

TEXT = "<|im_start|>Café 🙂"
MESSAGES = [{"role": "user", "content": "Hello"}]


def test_a_prompt_in_vllms_form(http: httpx.Client) -> None:
    answer = http.post("/tokenize", json={"prompt": TEXT, "return_token_strs": True}).json()
    tokens = tiny_tokenizer().encode(TEXT)
    names = [tiny_tokenizer().token_of(id_) for id_ in tokens]
    assert answer == {
        "count": len(tokens),
        "max_model_len": 256,
        "tokens": tokens,
        "token_strs": names,
    }
    assert names[0] == "<|im_start|>"


def test_tokens_come_back_as_the_text(http: httpx.Client) -> None:
    for text in (TEXT, SCRIPT, "", "\x01 \u2028"):
        tokens = http.post("/tokenize", json={"content": text}).json()["tokens"]
        answer = http.post("/detokenize", json={"tokens": tokens, "model": MODEL}).json()
        assert answer == {"prompt": text, "content": text}


def test_a_text_in_llamacpps_form(http: httpx.Client) -> None:
    body = {"content": TEXT, "with_pieces": True, "parse_special": False}
    pieces = http.post("/tokenize", json=body).json()["tokens"]
    expected = tiny_tokenizer().encode(TEXT, add_special_tokens=False, parse_special=False)
    assert [piece["id"] for piece in pieces] == expected
    data = b"".join(
        piece["piece"].encode() if isinstance(piece["piece"], str) else bytes(piece["piece"])
        for piece in pieces
    )
    assert data == TEXT.encode()
    assert any(isinstance(piece["piece"], list) for piece in pieces), "a part of a character"


def test_a_conversation_is_what_the_model_would_be_asked(
    http: httpx.Client, server: Running
) -> None:
    text = http.post("/apply-template", json={"messages": MESSAGES}).json()["prompt"]
    answer = http.post("/tokenize", json={"messages": MESSAGES}).json()
    assert answer["tokens"] == server.service.encode_chat(MESSAGES)
    assert answer["tokens"] == tiny_tokenizer().encode(text, add_special_tokens=False)
    body = {"messages": MESSAGES, "add_generation_prompt": False}
    shorter = http.post("/tokenize", json=body).json()
    assert shorter["count"] < answer["count"]
    assert answer["tokens"][: shorter["count"]] == shorter["tokens"]


def test_tools_are_a_part_of_the_conversation(stage: Stage) -> None:
    tool = {"type": "function", "function": {"name": "time"}}
    plain, body = {"messages": MESSAGES}, {"messages": MESSAGES, "tools": [tool], "max_tokens": 1}
    with httpx.Client(base_url=stage.server.url, timeout=60) as http:
        asked = http.post("/v1/chat/completions", json=body).json()
        counted = http.post("/tokenize", json=body).json()
        assert counted["count"] == asked["usage"]["prompt_tokens"]
        assert counted["count"] > http.post("/tokenize", json=plain).json()["count"]
        assert '"time"' in http.post("/apply-template", json=body).json()["prompt"]


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "content": "b"}, "content"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"messages": [5]}, "messages"),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "image",
        ),
        ("/tokenize", {"prompt": "a" * (1024 * 1024 + 1)}, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "other"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/detokenize", {"tokens": [3, 100_000]}, "100000"),
        ("/detokenize", {"tokens": [-1]}, "-1"),
        ("/tokenize", {"messages": MESSAGES, "tools": [5]}, "tools[0]"),
        ("/tokenize", {"messages": MESSAGES, "documents": ["a"]}, "documents"),
        ("/apply-template", {"messages": []}, "messages"),
    ],
)
def test_what_cannot_be_done_is_said(
    http: httpx.Client, path: str, body: dict[str, object], named: str
) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == (404 if "model" in body else 400), answer.text
    assert named in answer.json()["error"]["message"] and len(answer.content) < 1000
