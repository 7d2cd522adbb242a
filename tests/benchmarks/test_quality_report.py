"""The tables: ratios of what was measured, and every failure by name."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.quality.contest import Row
from benchmarks.quality.contestants import Contestant
from benchmarks.quality.report import as_json, as_markdown
from benchmarks.quality.scores import KLD, Float64, summarize
from benchmarks.quality.workshop import Done

FLOAT = Contestant("float", "given", "hf", "float")
THEIRS = Contestant("theirs", "llm-compressor", "hf", "int4", "llm_compressor", ("gptq",))
OURS = replace(THEIRS, name="ours", tool="coldpress", rival="theirs", goal=0.5)


def scores(kld: float) -> Float64:
    made = np.full((4, 3, 10), 1.0 + kld)
    made[:, KLD] = kld * np.arange(1, 5)[:, None]
    return made


def row(contestant: Contestant, kld: float, seconds: float) -> Row:
    found = scores(kld)
    made = Done(contestant.name, "/somewhere", seconds, 2 * seconds, 10.0, 0.5, "digest")
    return Row(contestant, "python", made, 1_000_000, summarize(found), found)


def contest(kld: float) -> list[Row]:
    return [row(FLOAT, 0.0, 1), row(THEIRS, 0.4, 40), row(OURS, kld, 10)]


def test_duels_are_ratios_ours_over_theirs() -> None:
    told = as_json({"seed 0": contest(0.1)}, {"threads": 2})
    assert told["threads"] == 2
    [duel] = told["duels"]
    assert (duel["row"], duel["against"], duel["goal"]) == ("ours", "theirs", 0.5)
    assert duel["kld_ratio"]["mean"] == pytest.approx(0.25)
    assert duel["kld_ratio"]["se"] == pytest.approx(0.0, abs=1e-12)
    assert duel["seconds_ratio"] == 0.25
    assert duel["bytes_ratio"] == 1.0


def test_several_models_give_a_geometric_mean() -> None:
    text = as_markdown({"seed 0": contest(0.1), "seed 1": contest(0.4)})
    assert "| **ours** | theirs | mean of 2 | **0.500** |" in text


def test_what_failed_is_told_and_the_rest_stands() -> None:
    failed = Row(OURS, "python", problem="exit code 2: no such recipe")
    text = as_markdown({"seed 0": [row(FLOAT, 0.0, 1), failed]})
    assert "- seed 0, ours: exit code 2: no such recipe" in text
    assert "| float | float | 1 | 2 | 1.0 |" in text
    assert "Side by side" not in text
