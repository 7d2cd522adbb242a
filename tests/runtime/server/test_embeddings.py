"""Embeddings over HTTP, against the rows of the torch executor in float64."""

import base64
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import openai
import pytest

from runtime.engine.batch import StepBatch
from runtime.executors.cpu import CpuExecutor
from runtime.executors.torch import TorchExecutor
from tests.runtime.server.harness import (
    MODEL,
    Running,
    ScriptedExecutor,
    running,
    tiny_text_model,
    tiny_tokenizer,
)

TEXTS = ("The press stands in the corner.", "Café, 日本語", "oil")
Float64 = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def embedder() -> Iterator[Running]:
    with running(CpuExecutor(tiny_text_model(), num_pages=64, page_size=8, threads=1)) as server:
        yield server


@cache
def hidden(tokens: tuple[int, ...]) -> Float64:
    """The oracle."""
    oracle = TorchExecutor(tiny_text_model(), num_pages=33, page_size=8, dtype="float64")
    order = np.arange(len(tokens), dtype=np.int32)
    pages = 1 + np.arange(len(tokens) // 8 + 1, dtype=np.int32)[None]
    ends = np.array([0, len(tokens)], np.int32)
    rows = oracle.hidden(StepBatch(np.array(tokens, np.int32), order, ends, pages, order))
    return rows.astype(np.float64)


def expected(tokens: Sequence[int], pooling: str, *, normalize: bool = True) -> Float64:
    rows = hidden(tuple(tokens))
    row: Float64 = rows.mean(axis=0) if pooling == "mean" else rows[-1]
    return row / np.linalg.norm(row) if normalize else row


def post(server: Running, **fields: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": MODEL, **fields}, timeout=30)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("normalize", [True, False])
def test_rows_are_those_of_the_oracle(embedder: Running, pooling: str, normalize: bool) -> None:
    answer = post(embedder, input=list(TEXTS), pooling=pooling, normalize=normalize)
    tokens = [tiny_tokenizer().encode(text) for text in TEXTS]
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    for one, ids in zip(answer["data"], tokens, strict=True):
        row = expected(ids, pooling, normalize=normalize)
        assert one["object"] == "embedding"
        # One float32 forward of two layers of width 64, whose rows have size 1.
        assert np.allclose(one["embedding"], row, atol=1e-4)
    count = sum(map(len, tokens))
    assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}
    assert (answer["object"], answer["model"]) == ("list", MODEL)


def test_every_kind_of_input_gives_the_same_bits(embedder: Running) -> None:
    ids = tiny_tokenizer().encode(TEXTS[0])
    for pooling in ("mean", "last"):
        alone = post(embedder, input=TEXTS[0], pooling=pooling)["data"][0]["embedding"]
        for given in (ids, [ids], [TEXTS[0]], [*TEXTS[1:], TEXTS[0]] * 9):
            answer = post(embedder, input=given, pooling=pooling)
            assert answer["data"][-1]["embedding"] == alone
        encoded = post(embedder, input=ids, pooling=pooling, encoding_format="base64")
        data = base64.b64decode(encoded["data"][0]["embedding"])
        assert np.frombuffer(data, "<f4").tolist() == np.float32(alone).tolist()


def test_the_openai_client_reads_them(embedder: Running) -> None:
    with embedder.client() as client:
        answer = client.embeddings.create(model=MODEL, input=list(TEXTS))
        assert np.allclose(
            answer.data[1].embedding, expected(tiny_tokenizer().encode(TEXTS[1]), "last"), atol=1e-4
        )
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model=MODEL, input="a", dimensions=8)
        assert refused.value.param == "dimensions"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", None),
        ("input", ""),
        ("input", []),
        ("input", [[]]),
        ("input", [1, "a"]),
        ("input", ["a"] * 2049),
        ("input", [384]),
        ("encoding_format", "int8"),
        ("pooling", "max"),
        ("truncate_prompt_tokens", 0),
    ],
)
def test_what_is_wrong_is_named(embedder: Running, field: str, value: object) -> None:
    body = {"model": MODEL, "input": "a", field: value}
    answer = httpx.post(f"{embedder.url}/v1/embeddings", json=body, timeout=30)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in (field, "prompt")


def test_inputs_are_cut_only_where_asked_for(embedder: Running) -> None:
    long = [5] * 300
    answer = httpx.post(f"{embedder.url}/v1/embeddings", json={"input": long}, timeout=30)
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    # What vLLM's benchmark asks of every embedding.
    fits = post(embedder, input=long, truncate_prompt_tokens=-1)
    assert fits["usage"]["prompt_tokens"] == embedder.service.max_positions
    cut = post(embedder, input=long, truncate_prompt_tokens=3)
    assert cut["data"] == post(embedder, input=[5] * 3)["data"]
    assert cut["usage"]["prompt_tokens"] == 3


def test_pages_are_free_afterwards(embedder: Running) -> None:
    post(embedder, input=["a"] * 20, pooling="mean")
    assert embedder.engine.pages_in_use == 0


def test_a_backend_without_hidden_rows_says_so() -> None:
    with running(ScriptedExecutor()) as server:
        answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": "a"}, timeout=30)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "model"
    assert "embeddings" in answer.json()["error"]["message"]
