"""Gates: what parses, what is refused, what holds, and what nobody can tell yet."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from coldpress.gates import (
    METRICS,
    Gate,
    Verdict,
    check_gates,
    judge_gates,
    parse_gates,
    require_baseline,
)
from quant.format.errors import CheckFailedError, InputError

FIGURES = {
    "perplexity": 20.0,
    "tokens": 10_000,
    "kld": {"mean": 0.04, "se": 0.001, "p99": 0.5, "max": 3.0},
    "top1": {"mean": 0.9, "se": 0.01},
    "ppl_ratio": 1.05,
    "bits_per_weight": 4.6,
    "bytes": 1000,
    "intervals": {
        "kld": [0.038, 0.042],
        "kld_p99": [0.4, None],
        "top1": [0.88, 0.92],
        "perplexity": [19.0, 21.0],
        "ppl_ratio": [1.04, 1.06],
    },
}
VALUES = {
    "kld": (0.04, 0.038, 0.042),
    "kld_p99": (0.5, 0.4, math.inf),
    "kld_max": (3.0, 3.0, 3.0),
    "top1": (0.9, 0.88, 0.92),
    "perplexity": (20.0, 19.0, 21.0),
    "ppl_ratio": (1.05, 1.04, 1.06),
    "bits_per_weight": (4.6, 4.6, 4.6),
    "bytes": (1000.0, 1000.0, 1000.0),
}
COMPARISONS = ["<=", "<", ">=", ">"]


@given(
    st.sampled_from(sorted(METRICS)),
    st.sampled_from(COMPARISONS),
    st.floats(-1e6, 1e6) | st.floats(0, 2),
)
def test_a_gate_holds_where_its_whole_interval_does(
    metric: str, comparison: str, limit: float
) -> None:
    _, low, high = VALUES[metric]
    (verdict,) = judge_gates(parse_gates([f" {metric} {comparison} {limit!r} "]), FIGURES)
    whole = {"<=": high <= limit, "<": high < limit, ">=": low >= limit, ">": low > limit}
    part = {"<=": low <= limit, "<": low < limit, ">=": high >= limit, ">": high > limit}
    expected = "holds" if whole[comparison] else "undecided" if part[comparison] else "fails"
    assert verdict.outcome == expected
    assert verdict.holds == (expected == "holds")
    if not verdict.holds:
        with pytest.raises(CheckFailedError, match=metric):
            check_gates([verdict.gate], FIGURES)


@given(
    st.sampled_from(COMPARISONS),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
    st.floats(0.001, 0.999),
    st.integers(100, 10**6),
)
def test_so_many_more_tokens_do_decide_it(
    comparison: str, below: float, above: float, share: float, tokens: int
) -> None:
    """The interval that the longer text would have lies on one side."""
    value = 3.0
    limit = value + share * above if tokens % 2 else value - share * below
    verdict = Verdict(Gate("kld", comparison, limit), value, (value - below, value + above), tokens)
    assert verdict.outcome == "undecided"
    more = verdict.more_tokens()
    assume(more is not None)
    assert more is not None and more > 0
    shrink = math.sqrt(tokens / (tokens + more)) * (1 - 1e-9)
    narrow = (value - below * shrink, value + above * shrink)
    decided = Verdict(verdict.gate, value, narrow, tokens + more)
    assert decided.outcome != "undecided"
    assert "more tokens" in str(verdict)


def test_undecided_says_what_would_decide_it() -> None:
    with pytest.raises(CheckFailedError) as caught:
        check_gates(parse_gates(["kld<=0.041"]), FIGURES)
    # An interval of 0.002 towards a limit 0.001 away: four times the text, three times more.
    assert str(caught.value) == (
        "gate not met: kld<=0.041 is undecided (measured 0.04, 95% interval 0.038 to 0.042): about "
        "30,000 more tokens of text like this would decide it"
    )
    (at_limit, endless) = judge_gates(parse_gates(["kld<=0.04", "kld_p99<=0.6"]), FIGURES)
    assert "move the limit" in str(at_limit) and at_limit.more_tokens() is None
    assert "give a longer one" in str(endless) and endless.more_tokens() is None


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_a_figure_that_is_no_number_passes_no_gate(comparison: str) -> None:
    with pytest.raises(CheckFailedError):
        check_gates(parse_gates([f"perplexity{comparison}1"]), {"perplexity": math.nan})
    unknown = {"perplexity": None, "intervals": {"perplexity": [None, None]}}
    with pytest.raises(CheckFailedError, match="not a number"):
        check_gates(parse_gates([f"perplexity{comparison}1"]), unknown)


def test_every_missed_gate_is_named() -> None:
    with pytest.raises(CheckFailedError) as caught:
        check_gates(parse_gates(["kld<=0.01", "bytes<2000", "top1>=0.95", "bytes<7"]), FIGURES)
    assert str(caught.value) == (
        "gate not met: kld<=0.01 (measured 0.04, 95% interval 0.038 to 0.042), "
        "top1>=0.95 (measured 0.9, 95% interval 0.88 to 0.92), bytes<7 (measured 1000)"
    )


@pytest.mark.parametrize(
    "text", ["", "kld", "kld=0.05", "kld<=", "<=0.05", "loss<=1", "kld<=1-2", "kld<=0.05 top1>1"]
)
def test_what_is_no_gate_is_refused_by_name(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_gates(["bytes<1", text])
    assert f"'{text}'" in str(caught.value)


def test_gates_on_a_distance_ask_for_a_baseline() -> None:
    require_baseline(parse_gates(["perplexity<30", "bytes<10"]), baseline_given=False)
    with pytest.raises(InputError, match=r"kld<=1 .*--baseline"):
        require_baseline(parse_gates(["perplexity<30", "kld<=1"]), baseline_given=False)
