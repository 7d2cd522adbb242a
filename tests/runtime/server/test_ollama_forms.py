"""Ollama's constrained answers, thoughts and embeddings, asked by Ollama's own Python client."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import ollama
import pytest

from runtime.engine.batch import StepBatch
from runtime.server.registry import Registry
from runtime.server.registry_models import Loaded, ModelSettings
from runtime.server.registry_names import parse_alias
from runtime.text.template import ChatTemplate
from tests.runtime.server.harness import (
    MODEL,
    Running,
    ScriptedExecutor,
    make_service,
    running,
    serving,
    tiny_tokenizer,
)
from tests.runtime.text.grammar.harness import RandomModel

MESSAGES = [{"role": "user", "content": "Hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"age": {"enum": [7, 8]}},
    "required": ["age"],
    "additionalProperties": False,
}


class Embedder(ScriptedExecutor):
    """Hidden rows that tell token and position."""

    def hidden(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        rows = batch.logit_rows
        columns = (batch.token_ids[rows], batch.positions[rows], np.full(len(rows), 2))
        return np.stack(columns, axis=1).astype(np.float32)


def client_of(server: Running) -> ollama.Client:
    return ollama.Client(host=server.url, timeout=60)


def test_format_is_kept_to() -> None:
    with running(RandomModel(eager=3.0)) as server:
        client = client_of(server)
        options = {"seed": 1, "num_predict": 200}
        answer = client.chat(MODEL, MESSAGES, format=SCHEMA, options=options)
        assert json.loads(answer.message.content or "")["age"] in (7, 8)
        parts = client.generate(MODEL, "Hello", format="json", stream=True, options=options)
        text = "".join(part.response or "" for part in parts)
        assert text.startswith("{")
        with pytest.raises(ollama.ResponseError, match="'format'"):
            client.chat(MODEL, MESSAGES, format={"type": "colour"})
        client._client.close()


def test_thoughts_are_told_from_the_answer() -> None:
    script = tiny_tokenizer().encode("I wonder</think>Hi there. ", add_special_tokens=False)
    executor = ScriptedExecutor(script)
    with running(executor) as server:
        server.service.template = ChatTemplate("{# </think> #}<think>")
        first = len(server.service.encode_chat(MESSAGES)) - 1
        # The answer is to begin with the script, which counts from position 0.
        executor.script = [script[(i - first) % len(script)] for i in range(len(script))]
        client = client_of(server)
        options = {"temperature": 0, "num_predict": len(script)}
        whole = client.chat(MODEL, MESSAGES, think=True, options=options)
        assert whole.message.thinking == "I wonder"
        assert (whole.message.content or "").startswith("Hi there.")
        parts = [*client.generate(MODEL, "Hello", think=True, stream=True, options=options)]
        assert "".join(part.thinking or "" for part in parts) == "I wonder"
        assert "".join(part.response or "" for part in parts).startswith("Hi there.")
        with pytest.raises(ollama.ResponseError, match="think"):
            client.chat(MODEL, MESSAGES, think="high")
        assert client.show(MODEL).capabilities == ["completion", "embedding", "tools", "thinking"]
        client._client.close()


def weather(city: str) -> str:
    """What it is like outside.

    Args:
        city: Where.
    """
    return f"Rain in {city}"


def test_tools_are_offered_and_called() -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    script = tiny_tokenizer().encode(call, add_special_tokens=False)
    executor = ScriptedExecutor(script, max_positions=2000, num_pages=600)
    with running(executor) as server:
        client = client_of(server)

        def ask(num_predict: int, **fields: Any) -> Any:
            options = {"temperature": 0, "num_predict": num_predict}
            return client.chat(MODEL, MESSAGES, tools=[weather], options=options, **fields)

        first = ask(1).prompt_eval_count - 1
        executor.script = [script[(i - first) % len(script)] for i in range(len(script))]
        (found,) = ask(len(script)).message.tool_calls
        assert found.function.name == "weather" and weather(**found.function.arguments)
        parts = [*ask(len(script), stream=True)]
        (streamed,) = [call for part in parts for call in part.message.tool_calls or ()]
        assert streamed.function.arguments == {"city": "Oslo"} and parts[-1].done
        cut = ask(len(script) - 18).message
        assert not cut.tool_calls and "weather" in (cut.content or "")
        told = [*MESSAGES, cut, {"role": "tool", "tool_name": "weather", "content": "Rain"}]
        assert client.chat(MODEL, told, options={"num_predict": 1}).done
        client._client.close()


def test_embeddings_are_unit_rows_of_each_input() -> None:
    texts = ["The press", "Café", "oil " * 80]

    def row(tokens: list[int], size: int = 3) -> npt.NDArray[np.float64]:
        found = np.array([tokens[-1], len(tokens) - 1, 2], np.float64)[:size]
        return found / np.linalg.norm(found)

    with running(Embedder(max_positions=64)) as server:
        client = client_of(server)
        tokens = [tiny_tokenizer().encode(text) for text in texts]
        answer = client.embed(MODEL, texts[:2])
        expected = np.stack([row(one) for one in tokens[:2]])
        np.testing.assert_allclose(np.array(answer.embeddings), expected, rtol=1e-6)
        assert answer.prompt_eval_count == sum(map(len, tokens[:2]))
        short = client.embed(MODEL, texts[0], dimensions=2)
        np.testing.assert_allclose(short.embeddings[0], row(tokens[0], 2), rtol=1e-6)
        old = client.embeddings(MODEL, texts[0])
        assert list(old.embedding) == [tokens[0][-1], len(tokens[0]) - 1, 2]
        cut = client.embed(MODEL, texts[2], truncate=True)
        np.testing.assert_allclose(cut.embeddings[0], row(tokens[2][:63]), rtol=1e-6)
        refused: list[tuple[Any, dict[str, Any]]] = [
            (texts[2], {}),
            (texts[0], {"dimensions": 4}),
        ]
        for given, fields in refused:
            with pytest.raises(ollama.ResponseError) as caught:
                client.embed(MODEL, given, **fields)
            assert caught.value.status_code == 400
        client._client.close()


def test_aliases_are_listed_and_answer() -> None:
    def load() -> Loaded:
        return Loaded(make_service(ScriptedExecutor())[0])

    card = {"family": "llama", "weight_bytes": 1000}
    registry = Registry([ModelSettings(MODEL, load, card=card)], [parse_alias(f"prod={MODEL}")])
    with serving(registry) as http:
        client = ollama.Client(host=str(http.base_url), timeout=60)
        assert [one.model for one in client.list().models] == [MODEL, "prod"]
        assert client.ps().models == [], "nothing is loaded before it is asked for"
        assert client.generate("prod:latest").model == MODEL
        shown = client.show("prod")
        assert (shown.modelinfo or {})["llama.context_length"] == 256
        (loaded,) = client.ps().models
        assert loaded.size == 1000 and loaded.details is not None
        assert loaded.details.family == "llama"
        client._client.close()
