"""Commands are run once, measured, and known by what they say and read."""

import sys
from pathlib import Path

import pytest

from benchmarks.quality.contest import Contest, Files
from benchmarks.quality.contestants import (
    Contestant,
    choose,
    default_contestants,
    parse_given,
    parse_recipe,
)
from benchmarks.quality.workshop import Made, Tool, Workshop, digest, given, inspect_tool

STEP = "identity"
"""The quickest step there is; it ignores what it is told."""
TOOL = Tool(sys.executable, {"torch": "1"})


def file(path: Path, text: str) -> Made:
    path.write_text(text)
    return given(path)


def test_a_command_is_run_once(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, threads=1)
    words: list[str | Made] = ["word", file(tmp_path / "in.txt", "input")]
    first = workshop.run("a name", TOOL, STEP, words)
    assert first.problem is None
    assert first.seconds > 0 and first.cpu_seconds > 0 and first.peak_mib > 1
    log = Path(first.directory) / "log.txt"
    log.write_text("kept")
    assert workshop.run("a name", TOOL, STEP, words) == first
    assert log.read_text() == "kept"


def test_a_run_that_was_cut_off_starts_anew(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, threads=1)
    first = workshop.run("a name", TOOL, STEP, [])
    (Path(first.directory) / "done.json").unlink()
    (first.output / "half.txt").write_text("half")
    again = workshop.run("a name", TOOL, STEP, [])
    assert again.directory == first.directory
    assert list(again.output.iterdir()) == []


def test_words_inputs_and_versions_tell_commands_apart(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, threads=1)
    one, other = file(tmp_path / "1.txt", "one"), file(tmp_path / "2.txt", "other")
    moved = Made(tmp_path / "elsewhere.txt", one.digest)
    newer = Tool(sys.executable, {"torch": "2"})
    told: list[tuple[Tool, list[str | Made]]] = [
        (TOOL, ["w", one]),
        (TOOL, ["v", one]),
        (TOOL, ["w", other]),
        (newer, ["w", one]),
    ]
    found = [workshop.run("n", tool, STEP, words).directory for tool, words in told]
    assert len(set(found)) == 4
    assert workshop.run("n", TOOL, STEP, ["w", moved]).directory == found[0]


def test_a_failure_is_told_and_tried_again(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, threads=1)
    done = workshop.run("n", TOOL, "no_such_step", [])
    assert done.problem is not None
    assert "exit code 1" in done.problem and "no_such_step" in done.problem
    assert not (Path(done.directory) / "done.json").exists()


def test_a_missing_recipe_is_a_failed_row(tmp_path: Path) -> None:
    nothing = Made(tmp_path, "nothing")
    contest = Contest(
        "m", nothing, Files(nothing, nothing, nothing), {"coldpress": TOOL}, Workshop(tmp_path, 1)
    )
    failed = contest.row(parse_recipe("no-such-recipe"))
    assert failed.problem is not None and failed.summary is None
    absent = contest.row(Contestant("x", "llm-compressor", "hf", "x", "llm_compressor", ("gptq",)))
    assert absent.problem is not None and absent.problem.startswith("left out")


def test_a_directory_is_its_weights_and_configs_by_name(tmp_path: Path) -> None:
    found = set()
    for number, (name, text) in enumerate(
        [("a.safetensors", "x"), ("b.safetensors", "x"), ("a.safetensors", "y")]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_text(text)
        found.add(digest(folder))
        (folder / "log.md").write_text("seconds: 3")
    assert len(found) == 3
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "a.safetensors").write_text("x")
    assert digest(copy) == digest(tmp_path / "0")


def test_a_tool_says_what_it_has() -> None:
    versions = inspect_tool(sys.executable).versions
    assert {"numpy", "torch", "coldpress", "coldpress source"} <= set(versions)
    with pytest.raises(ValueError, match="is not a Python"):
        inspect_tool("/no/such/python")


def test_every_rival_is_a_row_before_its_own() -> None:
    rows = default_contestants()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    for row in rows:
        assert row.rival is None or names.index(row.rival) < names.index(row.name)


def test_rows_of_the_users_own(tmp_path: Path) -> None:
    row = parse_recipe("w4a16 gptq.polish=3")
    assert row.words == ("w4a16", "--set", "gptq.polish=3")
    assert row.rival == "llm-compressor gptq"
    (tmp_path / "x.gguf").touch()
    assert parse_given(f"mine={tmp_path / 'x.gguf'}").container == "gguf"
    assert parse_given(f"mine={tmp_path}").container == "hf"
    with pytest.raises(ValueError, match="NAME=PATH"):
        parse_given("mine")


def test_rows_are_chosen_by_pattern() -> None:
    assert [row.name for row in choose(default_contestants(), ["float", "*f32"])] == [
        "float",
        "llama.cpp f32",
    ]
    with pytest.raises(ValueError, match="fits no row"):
        choose(default_contestants(), ["awq"])
