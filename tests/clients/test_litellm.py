"""LiteLLM, unmodified."""

import os
import warnings
from typing import Any

import pytest

from tests.runtime.server.harness import MODEL, Running, ScriptedExecutor, tiny_tokenizer

# Else it asks the network for its list of prices, again and again.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    litellm: Any = pytest.importorskip(
        "litellm", reason="litellm wants an older huggingface-hub: run `make test-clients`"
    )

pytestmark = [
    pytest.mark.clients,
    # It opens event loops and clients that it leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*ReadOnly:UserWarning"),
]
HI = [{"role": "user", "content": "Hi"}]


def expected(num_prompt_tokens: int, num_tokens: int) -> str:
    return tiny_tokenizer().decode(ScriptedExecutor().answer(num_prompt_tokens, num_tokens))


def ask(server: Running, **fields: Any) -> Any:
    given = {"model": f"openai/{MODEL}", "messages": HI, "max_tokens": 7, **fields}
    return litellm.completion(api_base=f"{server.url}/v1", api_key="none", num_retries=0, **given)


def test_chats(server: Running) -> None:
    answer = ask(server)
    assert answer.choices[0].message.content == expected(17, 7)
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (17, 7)
    chunks = list(ask(server, stream=True, stream_options={"include_usage": True}))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == expected(17, 7)


def test_completions(server: Running) -> None:
    answer = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}",
        api_base=f"{server.url}/v1",
        api_key="none",
        prompt="The press",
        max_tokens=6,
    )
    assert answer.choices[0].text == expected(len(tiny_tokenizer().encode("The press")), 6)


def test_errors_are_told_apart(server: Running) -> None:
    with pytest.raises(litellm.NotFoundError):
        ask(server, model="openai/nothing")
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(server, messages=[{"role": "user", "content": "Hi " * 4000}])
    with pytest.raises(litellm.BadRequestError):
        ask(server, temperature=9)
