"""tokenizer.json as GGUF keys: every id has a text, a type and a place, or the file is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compile.to_gguf.pretokenizer import NAMES, pretokenizer_name
from compile.to_gguf.vocabulary import vocabulary_keys
from quant.format.errors import FileFormatError, InputError, UnsupportedModelError
from tests.compile.to_gguf.make_tokenizers import (
    byte_level,
    put_tokenizer,
    sentencepiece,
    tokenizer_named,
)
from tests.tiny import write_json, write_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def tokenizer_of(folder: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return parsed


def keys_of(folder: Path, vocab_size: int = 384, **config: Any) -> dict[str, Any]:
    return dict(vocabulary_keys(folder, config, vocab_size)[0])


def test_every_id_has_its_token_and_type(folder: Path) -> None:
    keys = keys_of(folder)
    tokenizer = tokenizer_of(folder)
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    for text, index in tokenizer["model"]["vocab"].items():
        assert tokens[index] == text
        assert types[index] == (3 if text.startswith("<|") else 1)
    pairs = [pair.split(" ") for pair in keys["tokenizer.ggml.merges"]]
    assert pairs == tokenizer["model"]["merges"]


def test_holes_become_unused_tokens_up_to_the_table(folder: Path) -> None:
    tokenizer = tokenizer_of(folder)
    del tokenizer["model"]["vocab"]["jar"]
    hole = {"id": 400, "content": "<tool>", "special": False, "lstrip": True}
    tokenizer["added_tokens"].append(hole)
    write_json(folder / "tokenizer.json", tokenizer)
    keys, notes = vocabulary_keys(folder, {}, 410)
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list) and isinstance(types, np.ndarray)
    assert len(tokens) == len(types) == 410 and len(set(tokens)) == 410
    assert tokens[409] == "[PAD409]" and types[409] == 5
    assert tokens[400] == "<tool>" and types[400] == 4
    assert (types == 5).sum() == 410 - len(tokenizer["model"]["vocab"]) - 1
    assert any("<tool>" in note for note in notes)


def test_special_ids_come_from_the_tokenizer_then_from_the_config(folder: Path) -> None:
    keys = keys_of(folder)
    ids = {k.split(".")[2]: int(v) for k, v in keys.items() if k.endswith("_token_id")}
    assert ids == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "padding_token_id": 2,
    }
    write_json(folder / "tokenizer_config.json", {"bos_token": {"content": "<|im_end|>"}})
    write_json(folder / "generation_config.json", {"eos_token_id": [1, 2, 0]})
    keys = keys_of(folder, eos_token_id=1)
    assert int(keys["tokenizer.ggml.bos_token_id"]) == 2
    stops = [int(keys[f"tokenizer.ggml.{name}_token_id"]) for name in ("eos", "eot", "eom")]
    assert stops == [1, 2, 0]


@pytest.mark.parametrize("name", [*NAMES.values()])
def test_rules_are_recognised(name: str) -> None:
    assert pretokenizer_name(tokenizer_named(name)) == name


def test_built_in_steps_are_the_same_rules() -> None:
    steps: Any = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer = {"pre_tokenizer": steps, "model": {}}
    assert pretokenizer_name(tokenizer) == "gpt-2"
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, steps]}
    assert pretokenizer_name(tokenizer) == "smollm"


@pytest.mark.parametrize(
    "step",
    [
        None,
        {"type": "Whitespace"},
        {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
        {"type": "Digits", "individual_digits": False},
        {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"Regex": r"\d"}, "behavior": "Removed", "invert": True},
    ],
    ids=str,
)
def test_an_unknown_rule_is_refused(step: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json"):
        pretokenizer_name({"pre_tokenizer": step, "model": {}})


def test_whole_word_tokens_are_part_of_the_rule() -> None:
    (rule, _), _ = next(item for item in NAMES.items() if item[1] == "qwen2")
    with pytest.raises(UnsupportedModelError, match="ignore_merges=True"):
        pretokenizer_name(byte_level(rule, ignore_merges=True))


def test_sentencepiece_scores_order_the_merges(folder: Path) -> None:
    tokenizer = sentencepiece()
    put_tokenizer(folder, tokenizer)
    keys = keys_of(folder, 512)
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    score = dict(zip(tokens, keys["tokenizer.ggml.scores"].tolist(), strict=True))
    results = ["".join(pair) for pair in tokenizer["model"]["merges"]]
    ordered = [score[piece] for piece in dict.fromkeys(results)]
    assert ordered == sorted(ordered, reverse=True) and len(set(ordered)) == len(ordered)
    assert types[0] == 2 and types[1] == 3 and types[3] == 6
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.add_space_prefix"] is True
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.add_eos_token"] is False


def test_sentencepiece_that_llama_cpp_would_split_differently_is_refused(folder: Path) -> None:
    tokenizer = sentencepiece()
    piece = tokenizer["model"]["merges"].pop()
    put_tokenizer(folder, tokenizer)
    with pytest.raises(UnsupportedModelError, match=f"never merges {piece[0]!r}"):
        keys_of(folder, 512)
    tokenizer = sentencepiece()
    tokenizer["normalizer"] = {"type": "Lowercase"}
    put_tokenizer(folder, tokenizer)
    with pytest.raises(UnsupportedModelError, match="Lowercase"):
        keys_of(folder, 512)


@pytest.mark.parametrize(
    ("step", "adds"),
    [
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}, 1),
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}, 0),
    ],
    ids=["first", "never"],
)
def test_metaspace_is_the_newer_way_to_say_it(step: Any, adds: bool, folder: Path) -> None:
    tokenizer = sentencepiece() | {"normalizer": None, "pre_tokenizer": step}
    put_tokenizer(folder, tokenizer)
    assert keys_of(folder, 512)["tokenizer.ggml.add_space_prefix"] is bool(adds)


def test_templates_are_all_kept_and_files_win(folder: Path) -> None:
    given = [{"name": "default", "template": "old"}, {"name": "tools", "template": "t"}]
    write_json(folder / "tokenizer_config.json", {"chat_template": given})
    (folder / "chat_template.jinja").write_text("new")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("r")
    keys = {k: v for k, v in keys_of(folder).items() if "chat_template" in k}
    assert keys == {
        "tokenizer.chat_template": "new",
        "tokenizer.chat_templates": ["rag", "tools"],
        "tokenizer.chat_template.rag": "r",
        "tokenizer.chat_template.tools": "t",
    }


def broken(change: str) -> Any:
    tokenizer = sentencepiece() if change == "Unigram" else tokenizer_named("gpt-2")
    model = tokenizer["model"]
    match change:
        case "id beyond the table":
            model["vocab"]["extra"] = 5000
        case "two tokens of one text":
            added = {"id": 383, "content": "e", "special": True}
            tokenizer["added_tokens"].append(added)
        case "no vocabulary":
            del model["vocab"]
        case "vocabulary of lists":
            model["vocab"] = [["a", 0.5]]
        case "Unigram":
            model["type"] = "Unigram"
        case "NFKC":
            tokenizer["normalizer"] = {"type": "NFKC"}
        case "prefix":
            model["continuing_subword_prefix"] = "##"
    return tokenizer


@pytest.mark.parametrize(
    "change",
    [
        "id beyond the table",
        "two tokens of one text",
        "no vocabulary",
        "vocabulary of lists",
        "Unigram",
        "NFKC",
        "prefix",
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(change: str, folder: Path) -> None:
    write_json(folder / "tokenizer.json", broken(change))
    with pytest.raises((FileFormatError, UnsupportedModelError), match=r"tokenizer\.json"):
        keys_of(folder)


def test_nfc_is_kept_with_a_note(folder: Path) -> None:
    write_json(folder / "tokenizer.json", tokenizer_of(folder) | {"normalizer": {"type": "NFC"}})
    assert any("NFC" in note for note in vocabulary_keys(folder, {}, 384)[1])


def test_files_that_are_not_json_are_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"tokenizer\.json"):
        keys_of(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        keys_of(folder)
