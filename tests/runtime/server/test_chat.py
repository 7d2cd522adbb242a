"""The unmodified openai client is the user."""

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from runtime.engine.request import Request
from runtime.engine.thread import Listener
from tests.runtime.server.harness import MODEL, Running, ScriptedExecutor, running, tiny_tokenizer

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
PROMPT_TOKENS = 17


def expected(server: Running, num_tokens: int, num_prompt_tokens: int = PROMPT_TOKENS) -> str:
    tokens = ScriptedExecutor().answer(num_prompt_tokens, num_tokens)
    return tiny_tokenizer().decode(tokens)


def test_an_answer_and_its_usage(server: Running, client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=20)
    (choice,) = answer.choices
    assert choice.message.content == expected(server, 20)
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert answer.object == "chat.completion" and answer.model == MODEL
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(server.service.encode_chat([*map(dict, HI)]))
    assert answer.usage.completion_tokens == 20
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 20


def test_the_stream_adds_up_to_the_answer(server: Running, client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=HI,
        max_completion_tokens=30,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    *body, last = chunks
    assert body[0].choices[0].delta.role == "assistant" and body[0].choices[0].delta.content == ""
    assert all(chunk.choices[0].delta.role is None for chunk in body[1:])
    assert len(body) == 31, "one chunk per token, after the one that opens"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in body)
    assert text == expected(server, 30)
    reasons = [chunk.choices[0].finish_reason for chunk in body]
    assert reasons == [None] * 30 + ["length"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == 30


def test_parts_null_fields_and_unknown_keys_are_accepted(server: Running, client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        max_tokens=5,
        user="someone",
        metadata={"a": "b"},
        stop=None,
        extra_body={
            "logprobs": None,
            "tools": None,
            "temperature": None,
            "seed": None,
            "response_format": {"type": "text"},
            "my_own_key": [1],
        },
    )
    assert answer.choices[0].message.content == expected(server, 5)


def test_n_choices_share_one_prompt_in_usage(server: Running, client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=4, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {expected(server, 4)}
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens == PROMPT_TOKENS


def test_a_seed_gives_each_choice_its_own_draws_and_repeats_them(client: OpenAI) -> None:
    def draw() -> list[str | None]:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=HI,
            max_tokens=8,
            n=3,
            seed=7,
            temperature=2,
            # Levels the script's lead over the other tokens, so that there is something to draw.
            logit_bias={str(token): -24 for token in set(ScriptedExecutor().script)},
        )
        return [choice.message.content for choice in answer.choices]

    first = draw()
    assert draw() == first
    assert len(set(first)) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_across_tokens(server: Running, client: OpenAI, stream: bool) -> None:
    whole = expected(server, 60)
    stop = "in the"
    if stream:
        chunks = client.chat.completions.create(
            model=MODEL, messages=HI, max_tokens=60, stop=[stop, "zzz"], stream=True
        )
        choices = [chunk.choices[0] for chunk in chunks]
        text = "".join(choice.delta.content or "" for choice in choices)
        reason = choices[-1].finish_reason
    else:
        answer = client.chat.completions.create(
            model=MODEL, messages=HI, max_tokens=60, stop=[stop, "zzz"]
        )
        text, reason = answer.choices[0].message.content or "", answer.choices[0].finish_reason
    assert stop in whole and text == whole.partition(stop)[0]
    assert reason == "stop"


def test_an_ending_token_ends_the_answer_unless_ignored() -> None:
    letters = tiny_tokenizer().encode("abc")
    script = [*letters, 2, *letters]
    # Turned so that the position of the prompt's last token is where the script begins.
    turn = -(PROMPT_TOKENS - 1) % len(script)
    executor = ScriptedExecutor(script[turn:] + script[:turn])
    with running(executor) as server, server.client() as client:
        answer = client.chat.completions.create(model=MODEL, messages=HI)
        assert answer.choices[0].message.content == "abc"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == len(letters) + 1
        longer = client.chat.completions.create(
            model=MODEL, messages=HI, max_tokens=len(script), extra_body={"ignore_eos": True}
        )
        assert longer.choices[0].message.content == "abcabc"
        assert longer.choices[0].finish_reason == "length"


def test_logprobs(server: Running, client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HI, max_tokens=12, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    data = b"".join(bytes(entry.bytes or ()) for entry in logprobs.content)
    assert data.decode(errors="replace") == answer.choices[0].message.content
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == entry.logprob
        # The executor's other logits fall from -4 by 1/64 per id, and the chosen one is 20.
        assert entry.top_logprobs[1].logprob == pytest.approx(-24, abs=1e-4)
        assert entry.top_logprobs[2].logprob == pytest.approx(-24 - 1 / 64, abs=1e-4)


def test_logprobs_of_a_stream(client: OpenAI) -> None:
    chunks = client.chat.completions.create(
        model=MODEL, messages=HI, max_tokens=3, logprobs=True, stream=True
    )
    entries = [
        entry
        for chunk in chunks
        if chunk.choices[0].logprobs is not None
        for entry in chunk.choices[0].logprobs.content or ()
    ]
    assert len(entries) == 3 and all(entry.top_logprobs == [] for entry in entries)


def test_the_template_gets_its_variables(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=HI,
        max_tokens=1,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    assert answer.usage is not None and answer.usage.prompt_tokens == PROMPT_TOKENS


def test_the_models_own_sampling_is_the_default(
    server: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Request] = []
    submit = server.thread.submit

    def note(request: Request, on_event: Listener) -> None:
        seen.append(request)
        submit(request, on_event)

    monkeypatch.setattr(server.thread, "submit", note)
    monkeypatch.setattr(server.service, "sampling_defaults", {"temperature": 0.25, "top_k": 5})
    client.chat.completions.create(model=MODEL, messages=HI, max_tokens=1)
    client.chat.completions.create(
        model=MODEL, messages=HI, max_tokens=1, temperature=0, extra_body={"top_k": -1}
    )
    assert [(r.sampling.temperature, r.sampling.top_k) for r in seen] == [(0.25, 5), (0, 0)]


def test_errors_become_the_clients_own_exceptions(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-9", messages=HI)
    assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "word " * 300}]
        )
    assert too_long.value.code == "context_length_exceeded"
    assert "256 tokens" in too_long.value.message


def test_models(client: OpenAI) -> None:
    (card,) = client.models.list().data
    assert (card.id, card.object, card.owned_by) == (MODEL, "model", "coldpress")
    extra = client.models.retrieve(MODEL).model_dump()
    assert (extra["root"], extra["max_model_len"]) == (MODEL, 256)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")
