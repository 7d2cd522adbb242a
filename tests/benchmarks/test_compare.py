"""Ratios are taken within a round; a peer that fails is named."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.compare import main, markdown, parse_peer, ratios, run_cells
from benchmarks.speed.cells import CELLS, CELLS_VARIABLE, wanted_cells
from coldpress.loading import Machine

ROUNDS = [
    {"coldpress": {"decode_1": 30.0, "in_flight": 5.0}, "slow": {"decode_1": 10.0}},
    {"coldpress": {"decode_1": 80.0, "in_flight": 7.0}, "slow": {"decode_1": 20.0}},
    {"coldpress": {"decode_1": 10.0, "in_flight": 6.0}, "slow": {"decode_1": 5.0}},
]


def test_ratios_are_of_one_round() -> None:
    found = ratios(ROUNDS, "slow")
    assert list(found) == ["decode_1"]
    assert vars(found["decode_1"]) == {"median": 3.0, "lowest": 2.0, "highest": 4.0}


def test_the_table_says_what_a_peer_has_not() -> None:
    lines = markdown(ROUNDS).splitlines()
    assert lines[2] == "| decode_1 | 30 | 10 (3.00 x, 2.00 to 4.00) |"
    assert lines[3] == "| in_flight | 6 |  |"


def test_cells_are_the_numbers_of_the_last_object() -> None:
    code = 'print("loading"); print(\'{"model": "m", "decode_1": 12}\'); print("bye")'
    assert run_cells([sys.executable, "-c", code]) == {"decode_1": 12.0}
    with pytest.raises(ValueError, match=r"ended with 1: .*no such model"):
        run_cells([sys.executable, "-c", "raise SystemExit('no such model')"])


def test_only_some_cells_are_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from benchmarks.speed.cells import *; import json; "
    code += "print(json.dumps({cell: 1 for cell in CELLS if is_wanted(cell)}))"
    asked = ["decode_4", "in_flight"]
    assert list(run_cells([sys.executable, "-c", code], asked)) == asked
    assert list(run_cells([sys.executable, "-c", code])) == list(CELLS)
    monkeypatch.setenv(CELLS_VARIABLE, "decode_16")
    assert wanted_cells([1, 16], lambda: 1.0, float, lambda: 3.0) == {"decode_16": 16.0}
    assert main(["m", "-o", str(tmp_path), "--cells", "decode_4,decode_5"]) == 2
    assert "no cells decode_5" in capsys.readouterr().err


def test_peers_are_commands() -> None:
    assert parse_peer("llama.cpp=python 'a b.py' x") == ("llama.cpp", ["python", "a b.py", "x"])
    with pytest.raises(ValueError, match=r"'llama.cpp' is not NAME=COMMAND"):
        parse_peer("llama.cpp")


def test_a_missing_model_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "-o", str(tmp_path / "out"), "--rounds", "1"]) == 2
    assert "coldpress_cells" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def fails_later(directory: Path) -> str:
    """A command of cells that gives out one round and no second one."""
    code = (
        "import pathlib, sys; mark = pathlib.Path(sys.argv[1]); assert not mark.exists(); "
        "mark.touch(); print('{\"decode_1\": 5}')"
    )
    return shlex.join([sys.executable, "-c", code, str(directory / "mark")])


def test_a_run_that_is_cut_off_keeps_its_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = [sys.executable, "-c", "print('{\"decode_1\": 20}')"]
    monkeypatch.setattr(compare, "ours", lambda args: here)
    out = tmp_path / "out"
    peer = f"frail={fails_later(tmp_path)}"
    assert main(["m", "-o", str(out), "--peer", peer, "--rounds", "3"]) == 2
    written = json.loads((out / "compare.json").read_text())
    assert written["rounds"] == [{"coldpress": {"decode_1": 20.0}, "frail": {"decode_1": 5.0}}]
    assert written["ratios"]["frail"]["decode_1"]["median"] == 4.0
    assert "5 (4.00 x, 4.00 to 4.00)" in (out / "compare.md").read_text()


def test_our_cells_have_the_cache_that_was_asked_for() -> None:
    asked = compare.parser().parse_args(["m", "-o", "x", "--kv-cache-type", "int8"])
    words = compare.ours(asked)
    assert words[words.index("--kv-cache-type") + 1] == "int8"


def test_ours_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.speed import coldpress_cells
    from tests.tiny import tiny_checkpoint

    monkeypatch.setattr(coldpress_cells, "STREAMS", {2: 3})
    monkeypatch.setattr(coldpress_cells, "CONTEXT", 8)
    monkeypatch.setattr(coldpress_cells, "REQUESTS", 3)
    printed: list[str] = []
    monkeypatch.setattr("builtins.print", printed.append)
    model = tiny_checkpoint(tmp_path, max_position_embeddings=1024)
    coldpress_cells.main(model, Machine(threads=1, kv_cache_type="int8"))
    assert {"prefill_512", "decode_2", "in_flight"} <= json.loads(printed[-1]).keys()
