import pytest
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


def test_what_ended_the_answer_is_shown_where_asked_for(client: OpenAI) -> None:
    whole = expected(1, 40)
    stop = whole[12:15]
    body = {"include_stop_str_in_output": True}
    answer = client.completions.create(
        model=MODEL, prompt=[5], max_tokens=40, stop=stop, extra_body=body
    )
    assert answer.choices[0].text == whole[: whole.index(stop) + len(stop)]


@pytest.mark.parametrize("keep", [3, -1])
def test_a_prompt_is_cut_only_where_asked_for(client: OpenAI, keep: int) -> None:
    long = [7] * 1000
    answer = client.completions.create(
        model=MODEL, prompt=long, max_tokens=4, extra_body={"truncate_prompt_tokens": keep}
    )
    kept = 3 if keep == 3 else 252
    assert answer.usage is not None and answer.usage.prompt_tokens == kept
    assert answer.choices[0].text == expected(kept, 4)


def test_token_ids_are_returned_where_asked_for(client: OpenAI) -> None:
    executor = ScriptedExecutor()
    body = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    whole = client.completions.create(
        model=MODEL, prompt=[5, 6], max_tokens=4, logprobs=1, extra_body=body
    )
    (choice,) = whole.model_dump()["choices"]
    assert choice["token_ids"] == executor.answer(2, 4)
    assert choice["prompt_token_ids"] == [5, 6]
    assert choice["logprobs"]["tokens"] == [f"token_id:{id_}" for id_ in executor.answer(2, 4)]
    stream = client.completions.create(
        model=MODEL, prompt=[5, 6], max_tokens=4, stream=True, extra_body=body
    )
    choices = [chunk.model_dump()["choices"][0] for chunk in stream]
    assert [id_ for choice in choices for id_ in choice["token_ids"]] == executor.answer(2, 4)
    assert choices[0]["prompt_token_ids"] == [5, 6] and "prompt_token_ids" not in choices[1]


def test_timings_are_given_where_asked_for(client: OpenAI) -> None:
    body = {"timings_per_token": True}
    answer = client.completions.create(model=MODEL, prompt=[5, 6], max_tokens=4, extra_body=body)
    timings = answer.model_dump()["timings"]
    assert (timings["prompt_n"], timings["predicted_n"], timings["cache_n"]) == (2, 4, 0)
    assert timings["prompt_ms"] >= 0 and timings["predicted_per_second"] >= 0
    chunks = client.completions.create(
        model=MODEL, prompt=[5], max_tokens=4, stream=True, extra_body=body
    )
    counts = [chunk.model_dump()["timings"]["predicted_n"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 4


def test_words_that_may_not_come_and_tokens_that_may(client: OpenAI) -> None:
    whole = expected(1, 12)
    word = whole.split()[1]
    answer = client.completions.create(
        model=MODEL, prompt=[5], max_tokens=12, extra_body={"bad_words": [word]}, temperature=0
    )
    assert word in whole and word not in answer.choices[0].text
    letters = tiny_tokenizer().encode("ab")
    answer = client.completions.create(
        model=MODEL, prompt=[5], max_tokens=9, extra_body={"allowed_token_ids": letters}
    )
    assert set(answer.choices[0].text) <= set("ab")
