"""Tokens chosen on the device against the engine's own choice, row by row."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from runtime.engine.batch import NO_TOKEN
from runtime.engine.candidates import draw_token
from runtime.engine.request import SamplingParams
from tests.runtime.gpu import DEVICE

# The device is chosen before kernels are defined.
from runtime.kernels.triton import sampling  # isort: skip

Float32 = npt.NDArray[np.float32]


def chosen(logits: Float32, params: SamplingParams, uniform: float) -> int:
    def one(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor([value], dtype=dtype, device=DEVICE)

    choices = sampling.Choices(
        one(params.temperature),
        one(params.top_k, torch.int32),
        one(params.top_p),
        one(params.min_p),
        one(uniform),
    )
    return int(sampling.choose(torch.from_numpy(logits[None]).to(DEVICE), choices)[0])


def accepted(logits: Float32, params: SamplingParams, uniform: float) -> set[int]:
    """The engine's token, and those that it would give a rounding of the sums away: the device adds
    weights in float32, the engine in float64."""
    found = set()
    for shift in (-1e-5, 0.0, 1e-5):
        near = min(max(uniform + shift, 0.0), 1 - 1e-7)
        for part in (params.top_p - 1e-5, params.top_p, params.top_p + 1e-5):
            nearly = SamplingParams(
                temperature=params.temperature,
                top_k=params.top_k,
                top_p=min(max(part, 1e-5), 1.0) if params.top_p < 1 else 1.0,
                min_p=params.min_p,
            )
            found.add(draw_token(logits, nearly, near))
    return found


@settings(max_examples=6, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    st.integers(0, 2**31),
    st.integers(1, 60),
    st.floats(0.1, 3),
    st.integers(0, 12),
    st.sampled_from([1.0, 0.9, 0.5, 0.05]),
    st.sampled_from([0.0, 0.02, 0.3]),
    st.floats(0, 0.999),
    st.booleans(),
)
def test_draws_are_the_engines(
    seed: int,
    vocab: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    uniform: float,
    tied: bool,
) -> None:
    random = np.random.default_rng(seed)
    logits = (3 * random.normal(size=vocab)).astype(np.float32)
    if tied:
        logits = np.round(logits)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert chosen(logits, params, uniform) in accepted(logits, params, uniform)


def test_a_vocabulary_of_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_BLOCK", 32)
    logits = np.round(np.random.default_rng(1).normal(size=77) * 2).astype(np.float32)
    for top_k, top_p, uniform in ((0, 1.0, 0.97), (7, 1.0, 0.31), (9, 0.6, 0.97)):
        params = SamplingParams(temperature=0.8, top_k=top_k, top_p=top_p)
        assert chosen(logits, params, uniform) in accepted(logits, params, uniform)


def test_greedy_takes_the_lowest_of_equals() -> None:
    logits = np.array([0.5, 2.0, -1.0, 2.0], np.float32)
    assert chosen(logits, SamplingParams(temperature=0.0), 0.9) == 1
    assert chosen(logits, SamplingParams(temperature=1.0, top_k=1), 0.9) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_give_no_token(bad: float, temperature: float) -> None:
    logits = np.array([0.5, bad, 1.0], np.float32)
    assert chosen(logits, SamplingParams(temperature=temperature), 0.1) == NO_TOKEN
    nothing = np.full(3, -np.inf, np.float32)
    assert chosen(nothing, SamplingParams(temperature=temperature), 0.1) == NO_TOKEN


def test_banned_tokens_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf, 0.1], np.float32)
    for uniform in (0.0, 0.3, 0.7, 0.999):
        assert chosen(logits, SamplingParams(temperature=2.0), uniform) in (1, 3)
