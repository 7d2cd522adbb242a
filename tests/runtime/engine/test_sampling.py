"""What a request's sampler remembers, edits and refuses."""

from dataclasses import replace
from math import log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.candidates import Float32
from runtime.engine.request import Request, RequestError, SamplingParams
from runtime.engine.sampling import Draw, RowSampler
from runtime.engine.validate import check_sampling

VOCAB = 8
VALUES = st.lists(st.floats(-9, 9, width=16), min_size=VOCAB, max_size=VOCAB)
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=6)


def sampler_for(
    params: SamplingParams,
    prompt: tuple[int, ...] = (1,),
    stop: frozenset[int] = frozenset(),
    min_tokens: int = 0,
    vocab_size: int = VOCAB,
) -> RowSampler:
    return RowSampler(Request("r", prompt, 99, params, stop, min_tokens), vocab_size)


def draw(sampler: RowSampler, row: Float32, num_answer_tokens: int = 0) -> Draw:
    return sampler.draw(row, int(row.argmax()), num_answer_tokens)


@given(VALUES)
def test_greedy_is_the_lowest_id_of_the_largest_logit(values: list[float]) -> None:
    row = np.array(values, np.float32)
    expected = min(i for i in range(VOCAB) if row[i] == max(row))
    assert draw(sampler_for(SamplingParams(temperature=0)), row) == Draw(expected)


@given(
    values=VALUES,
    prompt=TOKENS.filter(bool),
    answer=TOKENS,
    presence=st.sampled_from([0.0, 0.5, -1.0]),
    frequency=st.sampled_from([0.0, 0.25, 2.0]),
    repetition=st.sampled_from([1.0, 1.5, 0.5]),
    bias=st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-100.0, 1.5, 100.0])),
    min_tokens=st.integers(0, 6),
)
def test_edits_by_definition(
    values: list[float],
    prompt: list[int],
    answer: list[int],
    presence: float,
    frequency: float,
    repetition: float,
    bias: dict[int, float],
    min_tokens: int,
) -> None:
    """Token by token in Python floats. Four float32 operations on values below 128 are off by at
    most 4 * 2**-18; the winner may be another only where two edited logits are that close."""
    params = SamplingParams(0, 0, 1, 0, presence, frequency, repetition, bias)
    sampler = sampler_for(params, tuple(prompt), frozenset({2, 99}), min_tokens)
    for token_id in answer:
        sampler.note(token_id)
    edited = []
    for token_id, value in enumerate(float(v) for v in np.array(values, np.float32)):
        if token_id in prompt or token_id in answer:
            value = value / repetition if value > 0 else value * repetition
        value -= frequency * answer.count(token_id)
        value -= presence * (token_id in answer)
        value += bias.get(token_id, 0)
        banned = token_id == 2 and len(answer) < min_tokens
        edited.append(float("-inf") if banned else value)
    row = np.array(values, np.float32)
    result = draw(sampler, row, len(answer))
    assert result.token_id is not None
    assert edited[result.token_id] >= max(edited) - 2 * 4 * 2**-18
    assert row.tolist() == [float(np.float32(v)) for v in values], "the executor's logits changed"


def test_repetition_counts_prompt_and_answer_presence_the_answer_only() -> None:
    row = np.array([4.0, 5.0, 3.0, *[0.0] * (VOCAB - 3)], np.float32)
    for params, after_prompt, after_answer in (
        (SamplingParams(temperature=0, repetition_penalty=2.0), 0, 2),
        (SamplingParams(temperature=0, presence_penalty=2.5), 1, 1),
    ):
        sampler = sampler_for(params, prompt=(1,))
        assert draw(sampler, row).token_id == after_prompt
        sampler.note(0)
        assert draw(sampler, row, 1).token_id == after_answer


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "row",
    [
        np.full(VOCAB, np.nan),
        np.full(VOCAB, -np.inf),
        np.r_[np.zeros(VOCAB - 1), np.nan],
        np.r_[np.zeros(VOCAB - 1), np.inf],
    ],
    ids=["all nan", "all -inf", "one nan", "one +inf"],
)
def test_broken_logits_end_in_a_sentence(row: Float32, temperature: float) -> None:
    result = draw(sampler_for(SamplingParams(temperature=temperature)), row.astype(np.float32))
    assert result.token_id is None and result.error is not None and result.error.endswith(".")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_ban_on_every_token_ends_in_a_sentence(temperature: float) -> None:
    everything = frozenset(range(VOCAB))
    sampler = sampler_for(SamplingParams(temperature=temperature), stop=everything, min_tokens=2)
    row = np.zeros(VOCAB, np.float32)
    result = draw(sampler, row, 1)
    assert result.token_id is None and "no token to choose" in str(result.error)
    assert draw(sampler, row, 2).token_id is not None


def test_a_bias_on_every_token_still_answers() -> None:
    params = SamplingParams(temperature=0, logit_bias=dict.fromkeys(range(VOCAB), -100.0))
    assert draw(sampler_for(params), np.arange(VOCAB, dtype=np.float32)).token_id == VOCAB - 1


def test_an_overflowing_penalty_ends_in_a_sentence() -> None:
    params = SamplingParams(temperature=0, repetition_penalty=1e-38)
    row = np.full(VOCAB, 30.0, np.float32)
    row[1] = 3e38
    assert draw(sampler_for(params), row).error is not None


def test_logprobs_are_of_the_raw_logits() -> None:
    params = SamplingParams(temperature=0, logit_bias={3: 100.0}, logprobs=2)
    row = np.log(np.array([0.5, 0.25, 0.125, 0.125]), dtype=np.float64).astype(np.float32)
    result = draw(sampler_for(params, vocab_size=4), row)
    assert result.token_id == 3 and result.logprobs is not None
    assert result.logprobs.chosen == pytest.approx(log(0.125), abs=1e-6)
    assert [token_id for token_id, _ in result.logprobs.top] == [0, 1]
    assert result.logprobs.top[0][1] == pytest.approx(log(0.5), abs=1e-6)


def test_equal_seeds_repeat_and_no_seed_varies() -> None:
    row = np.zeros(VOCAB, np.float32)

    def text(seed: int | None) -> list[int | None]:
        sampler = sampler_for(SamplingParams(seed=seed))
        return [draw(sampler, row).token_id for _ in range(40)]

    assert text(5) == text(5) != text(6)
    # Two unseeded texts of 40 tokens out of 8 agree once in 8 ** 40 runs.
    assert text(None) != text(None)


@pytest.mark.parametrize("params", [{}, {"top_p": 0.8}, {"top_k": 3}, {"min_p": 0.2}])
def test_frequencies_over_seeds(params: dict[str, float]) -> None:
    """First draws of N seeds. Hoeffding: off by over sqrt(ln(2 / d) / 2N) in a share d of cases."""
    probabilities = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    kept = {"top_p": 3, "top_k": 3, "min_p": 4}.get(next(iter(params), ""), 5)
    expected = np.r_[probabilities[:kept] / probabilities[:kept].sum(), np.zeros(5 - kept)]
    row = np.log(probabilities).astype(np.float32)
    number = 3000
    drawn = np.zeros(5)
    for seed in range(number):
        choice = draw(
            sampler_for(SamplingParams(seed=seed, **params), vocab_size=5),  # type: ignore[arg-type]
            row,
        )
        assert choice.token_id is not None
        drawn[choice.token_id] += 1
    assert np.abs(drawn / number - expected).max() < sqrt(log(2 / 1e-9) / (2 * number))
    assert not drawn[kept:].any()


@given(
    rows=st.lists(VALUES, min_size=1, max_size=8),
    allowed=st.none() | st.sets(st.integers(0, VOCAB - 1), min_size=3),
    words=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3), max_size=2),
)
def test_words_and_tokens_that_may_not_be_chosen_are_not(
    rows: list[list[float]], allowed: set[int] | None, words: list[list[int]]
) -> None:
    """Greedy, against trying every token from the best down."""
    params = SamplingParams(
        temperature=0,
        allowed_token_ids=None if allowed is None else tuple(allowed),
        bad_words=tuple(map(tuple, words)),
    )
    sampler = sampler_for(params)
    answer: list[int] = []
    for values in rows:
        row = np.array(values, np.float32)
        best = next(
            (
                token
                for token in sorted(range(VOCAB), key=lambda token: (-row[token], token))
                if (allowed is None or token in allowed)
                and not any([*answer, token][-len(word) :] == word for word in words)
            ),
            None,
        )
        found = draw(sampler, row, len(answer))
        assert found.token_id == best
        if best is None:
            break
        sampler.note(best)
        answer.append(best)


def test_words_and_tokens_are_checked() -> None:
    for name, value in (
        ("allowed_token_ids", ()),
        ("allowed_token_ids", (VOCAB,)),
        ("bad_words", ((1, -1),)),
        ("bad_words", ((),)),
    ):
        with pytest.raises(RequestError) as refused:
            check_sampling(replace(SamplingParams(), **{name: value}), VOCAB)  # type: ignore[arg-type]
        assert refused.value.param == name
