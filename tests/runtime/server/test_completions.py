from openai import OpenAI

from tests.runtime.server.harness import MODEL, Running, ScriptedExecutor, tiny_tokenizer


def expected(num_prompt_tokens: int, num_tokens: int) -> str:
    return tiny_tokenizer().decode(ScriptedExecutor().answer(num_prompt_tokens, num_tokens))


def test_every_kind_of_prompt(client: OpenAI) -> None:
    tokens = tiny_tokenizer().encode("The press")
    for prompt, count in (("The press", 1), (tokens, 1), (["The press"] * 2, 2), ([tokens] * 2, 2)):
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=6)
        assert [choice.text for choice in answer.choices] == [expected(len(tokens), 6)] * count
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == count * len(tokens)
        assert answer.usage.completion_tokens == count * 6


def test_choices_are_counted_prompt_by_prompt(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=[[5], [5, 6]], n=2, max_tokens=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in answer.choices]
    assert texts == [expected(1, 3)] * 2 + [expected(2, 3)] * 2
    assert answer.usage is not None and answer.usage.prompt_tokens == 3


def test_the_default_is_sixteen_tokens_or_what_is_left(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=[[5], [5] * 250])
    assert answer.usage is not None and answer.usage.completion_tokens == 16 + 6


def test_the_stream_adds_up_and_counts_as_it_goes(client: OpenAI) -> None:
    stream = client.completions.create(
        model=MODEL,
        prompt=[[5], [5, 6]],
        max_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    )
    *chunks, last = list(stream)
    for index in (0, 1):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(choice.text for choice in mine) == expected(index + 1, 9)
        assert [choice.finish_reason for choice in mine] == [None] * 8 + ["length"]
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(counts) == len(chunks) == 18 and counts == sorted(counts)
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == 18


def test_logprobs_are_parallel_lists(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="The", max_tokens=5, logprobs=2)
    logprobs, text = answer.choices[0].logprobs, answer.choices[0].text
    assert logprobs is not None and logprobs.tokens is not None
    assert logprobs.text_offset is not None and logprobs.top_logprobs is not None
    assert "".join(logprobs.tokens) == text
    for token, offset, top in zip(
        logprobs.tokens, logprobs.text_offset, logprobs.top_logprobs, strict=True
    ):
        assert text[offset:].startswith(token)
        assert next(iter(top)) == token and len(top) == 2


def test_special_tokens_are_shown_when_asked_for(server: Running, client: OpenAI) -> None:
    bias = {"1": 100}
    hidden = client.completions.create(model=MODEL, prompt="a", max_tokens=2, logit_bias=bias)
    shown = client.completions.create(
        model=MODEL,
        prompt="a",
        max_tokens=2,
        logit_bias=bias,
        extra_body={"skip_special_tokens": False},
    )
    assert (hidden.choices[0].text, shown.choices[0].text) == ("", "<|im_start|>" * 2)
