"""The made-up problem that rounding is timed on."""

import torch

from benchmarks.rounding import correlated_moments, round_stage


def test_moments_are_those_of_some_input() -> None:
    moments = correlated_moments(40, torch.Generator().manual_seed(0))
    assert torch.equal(moments, moments.T)
    assert float(torch.linalg.eigvalsh(moments.double())[0]) > 0


def test_all_four_times_are_measured() -> None:
    times = round_stage([3, 2], 64)
    assert len(times) == 4
    assert min(times) > 0
