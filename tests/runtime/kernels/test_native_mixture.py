"""Sending rows to experts and collecting what comes back, against a plain sum in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.kernels.cpu._native import Plan
from tests.runtime.kernels.harness import ISAS, UNIT, Floats, random_floats, run_rows

WIDTH = 5


def mixed(x: Floats, experts: int, chosen: int, normalized: bool, threads: int = 1) -> Floats:
    """Each row's first columns are its logits, the rest is what every expert gives back."""

    def build(plan: Plan, source: int) -> int:
        logits, values, out = (plan.add_buffer(width, False) for width in (experts, WIDTH, WIDTH))
        sent = plan.add_buffer(WIDTH, False, routed=True)
        plan.add_slice(logits, source, 0)
        plan.add_slice(values, source, experts)
        plan.add_route(out, logits, chosen, normalized)
        for expert in range(experts):
            plan.add_send(sent, values, expert)
            # An expert that can be told from the others: silu(x) * x, as often as its number says.
            for _ in range(expert):
                plan.add_gated_act(sent, sent, sent, "silu")
            plan.add_collect(out, sent)
        return out

    return run_rows(x, build, ISAS[0], threads=threads)


def expected(x: Floats, experts: int, chosen: int, normalized: bool) -> Floats:
    out = np.zeros((len(x), WIDTH))
    for row, (logits, values) in enumerate(zip(x[:, :experts], x[:, experts:], strict=True)):
        shares = np.exp(logits.astype(np.float64) - logits.max())
        best = np.argsort(-logits, kind="stable")[:chosen]
        shares /= shares[best].sum() if normalized else shares.sum()
        for expert in best:
            value = values.astype(np.float64)
            for _ in range(expert):
                value = value / (1 + np.exp(-value)) * value
            out[row] += shares[expert] * value
    return out.astype(np.float32)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 40),
    experts=st.integers(1, 7),
    part=st.floats(0, 1),
    normalized=st.booleans(),
    ties=st.booleans(),
    threads=st.sampled_from([1, 2]),
)
def test_each_row_is_the_sum_of_its_experts(
    rows: int, experts: int, part: float, normalized: bool, ties: bool, threads: int
) -> None:
    """The first of equal logits is chosen; an expert may get all rows, or none."""
    chosen = 1 + round(part * (experts - 1))
    x = random_floats((rows, experts + WIDTH), seed=rows * 100 + experts)
    x[:, experts:] = np.clip(x[:, experts:], -1, 1)
    if ties:
        x[:, :experts] = np.round(x[:, :experts])
    found = mixed(x, experts, chosen, normalized, threads)
    # An exponential is good to 8 roundings, of which there are `experts`, then products and sums.
    assert np.abs(found - expected(x, experts, chosen, normalized)).max() <= 100 * UNIT
    if chosen == 1 and normalized:
        best = np.argmax(x[:, :experts], axis=1) == 0
        np.testing.assert_array_equal(found[best], x[best, experts:])


@pytest.mark.parametrize("chosen", [0, 4])
def test_more_experts_than_there_are_are_refused(chosen: int) -> None:
    with pytest.raises(ValueError, match="1 expert at least and to all at most"):
        mixed(random_floats((2, 3 + WIDTH), seed=0), 3, chosen, True)
