"""The report's pages on quality: histograms, intervals, conditions of rounding; and its weight."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress.report.artifact import Histogram
from coldpress.report.charts import WIDTH, histogram_chart
from coldpress.report.page import MODULES_ON_PAGE, html_page
from coldpress.report.sources import comparability, read_artifact, read_artifacts
from coldpress.report.write import render
from tests.coldpress.conftest import Run
from tests.coldpress.test_report import (
    EVALUATION,
    MODULES,
    assert_stands_alone,
    make_artifact,
    module,
)

WHOLE: dict[str, Any] = {
    **EVALUATION,
    "protocol": "paper",
    "text_sha256": "ab" * 32,
    "kld": {**EVALUATION["kld"], "median": 0.0003, "p90": 0.002, "p95": 0.004, "p999": 1.25},  # type: ignore[dict-item]
    "delta_p": {"rms": 0.0123},
    "ln_ppl_ratio": {"mean": 0.349, "se": 0.0021},
    "intervals": {"kld": [0.0012, 0.0015], "top1": [0.97, 0.99], "kld_p99": [0.009, None]},
    "kld_histogram": {"edges": [1e-4, 1e-3, 1e-2, 0.1], "counts": [10, 20, 60, 9, 1]},
}


def test_quantiles_intervals_and_the_histogram_are_shown(tmp_path: Path) -> None:
    read = read_artifact(make_artifact(tmp_path / "a", evaluation=WHOLE))
    page = assert_stands_alone(html_page([read]))
    row = next(row for row in page.cells if row and row[0] == "a" and len(row) == 11)
    assert row[1:] == [
        *("0.001345 (0.0012 to 0.0015)", "0.0003", "0.002", "0.004", "0.01005", "1.25", "9.698"),
        *("98.1% (97.0% to 99.0%)", "0.0123", "0.3490 ± 0.0021"),
    ]
    assert ("span", " a") in page.texts and "share of tokens" in html_page([read])
    assert "| a | 0.001345 (0.0012 to 0.0015) |" in render([read], "md")


def test_what_eval_prints_is_what_is_drawn(
    tiny: Path, tiny_gguf: Path, text_file: Path, tmp_path: Path, run_json: Run
) -> None:
    args = ["--text", text_file, "--baseline", tiny, "--window", 64]
    figures = run_json("eval", tiny_gguf, *args, "--gate", "kld<=1")
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(figures))
    (read,) = read_artifacts([tiny_gguf, path])
    found = read.evaluation
    assert found is not None and found.histogram is not None
    assert list(found.histogram.counts) == figures["kld_histogram"]["counts"]
    assert found.intervals["top1"] == tuple(figures["intervals"]["top1"])
    assert found.kld_p999 == figures["kld"]["p999"] and found.protocol == "paper"
    assert_stands_alone(html_page([read]))


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=40), st.integers(2, 8))
def test_shares_are_of_all_tokens(counts: list[int], steps: int) -> None:
    counts[1] += 1
    edges = tuple(1e-6 * 10 ** (i / steps) for i in range(len(counts) - 1))
    shares = Histogram(edges, tuple(counts)).shares()
    assert sum(share for _, _, share in shares) == pytest.approx(1.0)
    drawn = histogram_chart({"a": shares, "none": [], "b": shares[:1]}, "KLD", "share")
    points = re.findall(r'points="([^"]*)"', drawn)
    numbers = [tuple(map(float, spot.split(","))) for line in points for spot in line.split()]
    assert numbers and all(0 <= x <= WIDTH and 0 <= y <= WIDTH for x, y in numbers)


@pytest.mark.parametrize(
    "histogram",
    [
        {"edges": [1, 2], "counts": [1, 2]},
        {"edges": [2, 1], "counts": [1, 2, 3]},
        {"edges": [0, 1], "counts": [1, 2, 3]},
        {"edges": [1, 2], "counts": [0, 0, 0]},
        {"edges": [1, 2], "counts": [0, -1, 3]},
        {"edges": [1, "2"], "counts": [0, 1, 3]},
        {"edges": [1, 1e300], "counts": [0, 1, 3]},
        {"edges": list(range(1, 5000)), "counts": [1] * 5000},
        [],
    ],
)
def test_what_is_no_histogram_is_left_out(histogram: Any, tmp_path: Path) -> None:
    evaluation = {**WHOLE, "kld_histogram": histogram, "intervals": {"kld": [1], "top1": "x"}}
    read = read_artifact(make_artifact(tmp_path / "a", evaluation=evaluation))
    assert read.evaluation is not None and read.evaluation.histogram is None
    assert read.evaluation.intervals == {}
    assert_stands_alone(html_page([read]))


def test_other_texts_and_protocols_are_told(tmp_path: Path) -> None:
    other: list[dict[str, str]] = [{"text_sha256": "cd" * 32}, {"protocol": "llama.cpp"}, {}]
    paths = [
        make_artifact(tmp_path / str(index), evaluation={**WHOLE, **change})
        for index, change in enumerate(other)
    ]
    assert comparability(read_artifacts([paths[0], paths[2]]))
    assert comparability(read_artifacts([paths[1], paths[2]]))
    assert not comparability(read_artifacts([paths[2], paths[2]]))


def test_conditions_and_clipping_are_drawn_where_they_are_recorded(tmp_path: Path) -> None:
    recorded = [
        {**m, "condition": 100.0 + i, "clip_ratio": 0.001 * i} for i, m in enumerate(MODULES)
    ]
    page = html_page([read_artifact(make_artifact(tmp_path / "a", recorded))])
    texts = [data for _, data in assert_stands_alone(page).texts]
    assert any(text.startswith("Hessian condition.") for text in texts)
    assert any(text.startswith("Share of clipped weights.") for text in texts)
    assert {"condition", "clip ratio"} <= set(texts), "columns of the table"
    bare = html_page([read_artifact(make_artifact(tmp_path / "b", MODULES))])
    assert "Conditions of rounding" not in bare


def test_large_models_fit_a_page_that_can_be_mailed(tmp_path: Path) -> None:
    parts = [f"self_attn.{name}_proj" for name in "qkvo"]
    parts += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    dense = [module(layer, p, condition=1e3, clip_ratio=0.0) for layer in range(126) for p in parts]
    experts = [
        module(layer, f"mlp.experts.{index}.{p}_proj", state="as asked")
        for layer in range(24)
        for index in range(64)
        for p in ("gate", "up", "down")
    ]
    worst = module(23, "mlp.experts.7.up_proj", output_error=99.5)
    experts[-1] = module(23, "mlp.experts.63.down_proj", state="fallback rtn: no tokens")
    paths = [
        make_artifact(tmp_path / "dense", dense, evaluation=WHOLE),
        make_artifact(tmp_path / "moe", [*experts, worst], evaluation=WHOLE),
    ]
    text = html_page(read_artifacts(paths))
    assert len(dense) == 882 and len(experts) == 4608 and len(text.encode()) < 500_000
    page = assert_stands_alone(text)
    listed = [row for row in page.cells if row and row[0].startswith("model.layers")]
    assert len(listed) <= MODULES_ON_PAGE + 1
    names = [row[0] for row in listed]
    assert worst["module"] in names and names.count("model.layers.23.mlp.experts.63.down_proj") == 2
    assert "left out here" in text
    # Figures under the columns never touch: three characters of 11 pixels take less than 22.
    drawings = re.findall(r'<svg[^>]*by layer and module".*?</svg>', text)
    assert len(drawings) == 2
    for drawing in drawings:
        labels = re.findall(r'<text x="([^"]*)" y="[^"]*" class="mid">', drawing)
        assert len(labels) >= 6
        assert min(float(b) - float(a) for a, b in pairwise(labels)) >= 22
