"""Ratios are taken within a round; a peer that fails is named."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.compare import main, markdown, parse_peer, ratios, run_cells

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


def test_cells_are_the_numbers_of_the_last_line() -> None:
    code = 'print("loading"); print(\'{"model": "m", "decode_1": 12}\')'
    assert run_cells([sys.executable, "-c", code]) == {"decode_1": 12.0}
    with pytest.raises(ValueError, match=r"ended with 1: .*no such model"):
        run_cells([sys.executable, "-c", "raise SystemExit('no such model')"])


def test_peers_are_commands() -> None:
    assert parse_peer("llama.cpp=python 'a b.py' x") == ("llama.cpp", ["python", "a b.py", "x"])
    with pytest.raises(ValueError, match=r"'llama.cpp' is not NAME=COMMAND"):
        parse_peer("llama.cpp")


def test_a_missing_model_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "-o", str(tmp_path / "out"), "--rounds", "1"]) == 2
    assert "coldpress_cells" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ours_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.speed import coldpress_cells
    from tests.tiny import tiny_checkpoint

    monkeypatch.setattr(coldpress_cells, "STREAMS", {2: 3})
    monkeypatch.setattr(coldpress_cells, "CONTEXT", 8)
    monkeypatch.setattr(coldpress_cells, "REQUESTS", 3)
    printed: list[str] = []
    monkeypatch.setattr("builtins.print", printed.append)
    coldpress_cells.main(str(tiny_checkpoint(tmp_path, max_position_embeddings=1024)), 1)
    assert {"prefill_512", "decode_2", "in_flight"} <= json.loads(printed[-1]).keys()
