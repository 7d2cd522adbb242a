"""Gates: what parses, what is refused, what holds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress.gates import METRICS, check_gates, parse_gates, require_baseline
from quant.format.errors import CheckFailedError, InputError

FIGURES = {
    "perplexity": 20.0,
    "kld": {"mean": 0.04, "se": 0.001, "p99": 0.5, "max": 3.0},
    "top1": {"mean": 0.9, "se": 0.01},
    "ppl_ratio": 1.05,
    "bits_per_weight": 4.6,
    "bytes": 1000,
}


@given(
    st.sampled_from(sorted(METRICS)),
    st.sampled_from(["<=", "<", ">=", ">"]),
    st.floats(-1e6, 1e6),
)
def test_a_gate_means_what_python_means_by_it(metric: str, comparison: str, limit: float) -> None:
    value = {
        "kld": 0.04,
        "kld_p99": 0.5,
        "kld_max": 3.0,
        "top1": 0.9,
        "perplexity": 20.0,
        "ppl_ratio": 1.05,
        "bits_per_weight": 4.6,
        "bytes": 1000.0,
    }[metric]
    gates = parse_gates([f" {metric} {comparison} {limit!r} "])
    holds = {"<=": value <= limit, "<": value < limit, ">=": value >= limit, ">": value > limit}
    if holds[comparison]:
        check_gates(gates, FIGURES)
    else:
        with pytest.raises(CheckFailedError, match=metric):
            check_gates(gates, FIGURES)


@pytest.mark.parametrize("comparison", ["<=", "<", ">=", ">"])
def test_a_figure_that_is_no_number_passes_no_gate(comparison: str) -> None:
    with pytest.raises(CheckFailedError):
        check_gates(parse_gates([f"perplexity{comparison}1"]), {"perplexity": math.nan})
    with pytest.raises(CheckFailedError, match="not a number"):
        check_gates(parse_gates([f"perplexity{comparison}1"]), {"perplexity": None})


def test_every_missed_gate_is_named() -> None:
    with pytest.raises(CheckFailedError, match=r"kld<=0\.01 \(measured 0\.04\), top1>=0\.95"):
        check_gates(parse_gates(["kld<=0.01", "bytes<2000", "top1>=0.95"]), FIGURES)


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
