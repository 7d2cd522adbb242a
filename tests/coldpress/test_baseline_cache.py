"""Kept baselines: found for the same question only, and never more than their share of disk."""

import os
import shutil
from pathlib import Path

import pytest

from coldpress import baseline_cache
from coldpress.baseline_cache import BaselineCache, Key
from coldpress.cli import run
from coldpress.evaluation import evaluate_files
from quant.format.staging import is_staging
from runtime.evaluation.protocol import Protocol
from tests.coldpress.conftest import Run
from tests.tiny import TEXT

Capture = pytest.CaptureFixture[str]
IDS = [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_second_candidate_does_not_run_the_baseline(
    tiny: Path,
    tiny_gguf: Path,
    text_file: Path,
    tmp_path: Path,
    run_json: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    args = ["--text", text_file, "--baseline", tiny, "--window", 64]
    first = run_json("eval", tiny_gguf, *args)
    opened: list[Path] = []
    real = baseline_cache.BaselineCache.keep

    def counted(*arguments: object) -> object:
        opened.append(tiny)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(baseline_cache.BaselineCache, "keep", counted)
    assert run_json("eval", tiny_gguf, *args) == first
    run_json("eval", tiny, *args)
    assert opened == []
    exact = run_json("eval", tiny_gguf, *args, "--no-cache")
    # Sixteen bits per token of the vocabulary: see runtime.evaluation.baseline for the bound.
    assert exact["kld"]["mean"] == pytest.approx(first["kld"]["mean"], abs=1e-4)
    for figure in ("perplexity", "ppl_ratio", "top1"):
        assert exact[figure] == first[figure]
    assert run(["eval", str(tiny_gguf), *map(str, args)]) == 0
    assert "predictions are read from" in capsys.readouterr().err
    run_json("eval", tiny_gguf, *args[:-1], 32)
    assert opened == [tiny], "another window is another question"


def test_a_key_is_everything_that_predictions_depend_on(tiny: Path, tmp_path: Path) -> None:
    cache, protocol = BaselineCache(tmp_path), Protocol(window=4)
    key = cache.key(tiny, IDS, protocol, "cpu")
    assert key == cache.key(tiny, IDS, protocol, "cpu") and key.tokens == 6
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    assert cache.key(copy, IDS, protocol, "cpu") == key, "a name says nothing"
    others = [
        cache.key(tiny, [9, *IDS[1:]], protocol, "cpu"),
        cache.key(tiny, IDS, Protocol(window=3), "cpu"),
        cache.key(tiny, IDS, Protocol("llama.cpp", 4), "cpu"),
        cache.key(tiny, IDS, protocol, "another"),
    ]
    weights = copy / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    others.append(cache.key(copy, IDS, protocol, "cpu"))
    assert len({key, *others}) == len(others) + 1


def entry(cache: BaselineCache, name: str, size: int, age: int) -> Path:
    path = cache.directory / name
    path.mkdir(parents=True)
    (path / "x.npy").write_bytes(bytes(size))
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    notes: list[str] = []
    cache = BaselineCache(tmp_path, limit_bytes=1000, note=notes.append)
    old, older, new = (entry(cache, n, 300, age) for n, age in (("a", 5), ("b", 9), ("c", 1)))
    assert cache._make_room(100) and old.exists() and older.exists()
    assert cache._make_room(200) and old.exists() and not older.exists() and new.exists()
    assert len(notes) == 1 and "removed to make room" in notes[0] and "b" in notes[0]
    assert not cache._make_room(1001) and old.exists() and new.exists()
    assert "more than the 1.0 kB" in notes[-1]


def test_a_full_disk_is_told_and_nothing_is_kept(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline_cache, "free_bytes", lambda _: 1000)
    notes: list[str] = []
    cache = BaselineCache(tmp_path / "kept", note=notes.append)
    figures = evaluate_files(tiny, TEXT, baseline=tiny, window=32, cache=cache)
    assert figures["kld"]["mean"] == 0
    assert "disk has 1.0 kB free" in notes[-1] and not cache.directory.exists()


def test_an_evaluation_that_ends_early_keeps_nothing(tiny: Path, tmp_path: Path) -> None:
    cache = BaselineCache(tmp_path)

    def interrupt(done: int, _total: int, _what: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_files(tiny, TEXT, baseline=tiny, window=32, cache=cache, on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_entry_is_removed_and_made_again(tiny: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    cache = BaselineCache(tmp_path, note=notes.append)

    def figures() -> object:
        return evaluate_files(tiny, TEXT, baseline=tiny, window=32, cache=cache)

    first = figures()
    (kept,) = (path for path in tmp_path.iterdir() if not is_staging(path))
    (kept / "loss.npy").write_bytes(b"nonsense")
    assert figures() == first and any("is of no use" in note for note in notes)
    assert cache.read(Key(kept.name, 1)) is None, "another number of tokens"
