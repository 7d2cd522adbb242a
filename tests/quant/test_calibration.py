"""Calibration sets: every source gives whole windows, or says what is missing."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from quant.calibration import (
    DatasetSource,
    FileSource,
    SelfSource,
    gather,
    load_tokenizer,
    pack,
    parse_source,
    read_documents,
)
from quant.format.errors import FileFormatError, InputError
from quant.preflight import Prepared, prepare
from quant.recipe import CalibrationSpec, load_recipe
from tests.tiny import TEXT, tiny_checkpoint

SPEC = CalibrationSpec(samples=6, tokens=16, seed=3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    model = tiny_checkpoint(tmp_path_factory.mktemp("model"))
    return prepare(model, load_recipe("w4a16"))


def test_sources_are_told_apart(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("x")
    assert parse_source("self") == SelfSource()
    assert parse_source(str(text)) == FileSource(text)
    assert parse_source("owner/name:config") == DatasetSource("owner/name:config")
    for missing in (str(tmp_path / "b.txt"), "b.jsonl", "./b"):
        with pytest.raises(InputError, match="not found"):
            parse_source(missing)
    with pytest.raises(InputError, match="directory"):
        parse_source(str(tmp_path))


def write_all_kinds(directory: Path, texts: list[str]) -> list[Path]:
    import pyarrow as pa
    from pyarrow import parquet

    lines = directory / "t.jsonl"
    lines.write_text("".join(json.dumps({"text": t}) + "\n\n" for t in texts))
    columns = directory / "t.parquet"
    parquet.write_table(pa.table({"text": texts, "other": list(range(len(texts)))}), columns)
    plain = directory / "t.txt"
    plain.write_text("".join(texts), encoding="utf-8")
    return [plain, lines, columns]


def test_every_kind_of_file_gives_the_same_text(tmp_path: Path) -> None:
    texts = [TEXT, "second", "third\n"]
    for path in write_all_kinds(tmp_path, texts):
        assert "".join(str(t) for t in read_documents(path)) == "".join(texts)


def test_messages_go_through_the_chat_template(tmp_path: Path, prepared: Prepared) -> None:
    path = tmp_path / "chat.jsonl"
    messages = [{"role": "user", "content": TEXT}]
    path.write_text(json.dumps({"messages": messages}))
    tokenizer = load_tokenizer(prepared.source.path)
    spec = CalibrationSpec(samples=1, tokens=16)
    tokens = pack(read_documents(path), tokenizer, spec, "chat")
    assert tokens.shape == (1, 16)
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    whole = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    windows = [whole[i : i + 16] for i in range(0, len(whole) - 15, 16)]
    assert tokens[0].tolist() in windows


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", b"{not json}\n", "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"body": 1}\n', "line 2 has neither 'text' nor 'messages'"),
        ("a.parquet", b"PAR1 and nothing more", "not a Parquet file"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_corrupt_file_is_named(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=sentence):
        list(read_documents(path))


def test_windows_are_whole_distinct_and_in_order(prepared: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(TEXT, encoding="utf-8")
    result = gather(FileSource(path), prepared.source, prepared.skeleton, SPEC)
    whole = load_tokenizer(prepared.source.path)(TEXT, add_special_tokens=False)["input_ids"]
    windows = np.array(whole[: len(whole) // 16 * 16]).reshape(-1, 16)
    places = [int(np.flatnonzero((windows == row).all(axis=1))[0]) for row in result.tokens]
    assert places == sorted(set(places))
    assert result.tokens.shape == (6, 16)
    assert result.tokens.dtype == np.int64
    assert result.sha256 == hashlib.sha256(result.tokens.tobytes()).hexdigest()
    again = gather(FileSource(path), prepared.source, prepared.skeleton, SPEC)
    assert again.sha256 == result.sha256
    other = CalibrationSpec(samples=6, tokens=16, seed=4)
    assert (
        gather(FileSource(path), prepared.source, prepared.skeleton, other).sha256 != again.sha256
    )


def test_each_window_begins_as_the_tokenizer_begins() -> None:
    class Tokenizer:
        bos_token_id = 7

        def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
            ids = [ord(c) for c in text]
            return {"input_ids": ids if options.get("add_special_tokens") is False else [7, *ids]}

    documents: Iterator[str] = iter(["abcdefgh" * 4])
    tokens = pack(documents, Tokenizer(), CalibrationSpec(samples=2, tokens=8), "x")
    assert tokens[:, 0].tolist() == [7, 7]
    assert (tokens[:, 1:] != 7).all()


def test_too_little_text_names_both_numbers(prepared: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("one two three")
    with pytest.raises(InputError, match=r"holds \d+ tokens but 96 are needed"):
        gather(FileSource(path), prepared.source, prepared.skeleton, SPEC)


def test_the_models_own_text(prepared: Prepared) -> None:
    """Valid, seeded, starting with the first token, never ending, global randomness untouched."""
    state = torch.random.get_rng_state()
    seen: list[tuple[int, int, str]] = []
    result = gather(
        SelfSource(), prepared.source, prepared.skeleton, SPEC, lambda *step: seen.append(step)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert result.tokens.shape == (6, 16)
    assert (result.tokens[:, 0] == 1).all()
    assert not (result.tokens == 2).any()
    assert seen[-1][:2] == (96, 96)
    again = gather(SelfSource(), prepared.source, prepared.skeleton, SPEC)
    assert again.sha256 == result.sha256
    assert all(p.is_meta for p in prepared.skeleton.model.parameters())


def test_a_data_set_that_cannot_be_had_is_one_sentence(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError, match="offline, give a file or 'self'"):
        gather(DatasetSource("owner/none"), prepared.source, prepared.skeleton, SPEC)


def test_a_data_set_is_streamed(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def rows(name: str, config: str | None, **_: object) -> list[dict[str, str]]:
        assert (name, config) == ("owner/name", "part")
        return [{"text": TEXT}] * 3

    monkeypatch.setattr(datasets, "load_dataset", rows)
    source = DatasetSource("owner/name:part")
    assert gather(source, prepared.source, prepared.skeleton, SPEC).tokens.shape == (6, 16)
