"""LangChain's own classes for OpenAI, unmodified."""

import pytest
from pydantic import SecretStr

from tests.runtime.server.harness import MODEL, Running, ScriptedExecutor, tiny_tokenizer

langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
PROMPT_TOKENS = 17


def expected(num_prompt_tokens: int, num_tokens: int) -> str:
    return tiny_tokenizer().decode(ScriptedExecutor().answer(num_prompt_tokens, num_tokens))


def test_a_chat_model(server: Running) -> None:
    model = langchain.ChatOpenAI(
        model=MODEL, base_url=f"{server.url}/v1", api_key=SecretStr("none"), max_completion_tokens=9
    )
    answer = model.invoke("Hi")
    assert answer.content == expected(PROMPT_TOKENS, 9)
    assert answer.usage_metadata["input_tokens"] == PROMPT_TOKENS
    assert answer.usage_metadata["output_tokens"] == 9
    assert answer.response_metadata["finish_reason"] == "length"
    assert "".join(chunk.content for chunk in model.stream("Hi")) == answer.content
    assert [one.content for one in model.batch(["Hi", "Hi"])] == [answer.content] * 2
    likely = model.bind(logprobs=True).invoke("Hi").response_metadata["logprobs"]["content"]
    assert len(likely) == 9


def test_a_chat_model_over_responses(server: Running) -> None:
    model = langchain.ChatOpenAI(
        model=MODEL,
        base_url=f"{server.url}/v1",
        api_key=SecretStr("none"),
        max_completion_tokens=9,
        use_responses_api=True,
    )
    answer = model.invoke("Hi")
    assert answer.text == expected(PROMPT_TOKENS, 9)
    assert answer.usage_metadata["output_tokens"] == 9
    assert "".join(chunk.text for chunk in model.stream("Hi")) == answer.text


def test_a_plain_model(server: Running) -> None:
    model = langchain.OpenAI(
        model=MODEL, base_url=f"{server.url}/v1", api_key=SecretStr("none"), max_tokens=6
    )
    prompt = "The press"
    text = expected(len(tiny_tokenizer().encode(prompt)), 6)
    assert model.invoke(prompt) == text == "".join(model.stream(prompt))
