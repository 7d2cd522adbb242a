"""A GGUF header's text side, written as files and read again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from compile.to_gguf.vocabulary import vocabulary_keys
from runtime.text.gguf_text_files import write_text_files
from runtime.text.template import load_template
from runtime.text.tokenizer import Tokenizer, load_tokenizer
from tests.compile.to_gguf.make_tokenizers import put_tokenizer, tokenizer_named
from tests.runtime.text.gguf_keys import byte_level_keys, sentence_piece_keys, text_model
from tests.tiny import TEXT, tiny_config, write_json

TEXTS = (
    *TEXT.splitlines(),
    "",
    " ",
    "  two  spaces ",
    "the press",
    "<s>in</s>",
    "é\u00a0ü\n\n",
    "💡",
)
KEYS = {"bytes": byte_level_keys, "sentencepiece": sentence_piece_keys}


def files_of(keys: dict[str, Any], directory: Path) -> Tokenizer:
    write_text_files(keys, "model.gguf", directory)
    return load_tokenizer(replace(text_model(directory), config={}))


@pytest.mark.parametrize("kind", KEYS)
def test_the_files_tokenize_as_the_header_does(kind: str, tmp_path: Path) -> None:
    keys = KEYS[kind]()
    ours, theirs = files_of(keys, tmp_path), load_tokenizer(text_model(keys=keys))
    for text in TEXTS:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special, parse_special=special)
            assert ours.encode(text, add_special_tokens=special, parse_special=special) == ids
            assert ours.decode(ids) == theirs.decode(ids)
    assert ours.special_tokens == theirs.special_tokens
    assert ours.special_ids == theirs.special_ids and ours.ending_ids == theirs.ending_ids


@pytest.mark.parametrize("name", ["smollm", "qwen2", "llama-bpe", "sentencepiece", "gemma"])
def test_a_tokenizer_comes_back_from_the_file_that_it_was_put_into(
    name: str, tmp_path: Path
) -> None:
    original, again = tmp_path / "original", tmp_path / "again"
    original.mkdir()
    again.mkdir()
    tokenizer = tokenizer_named(name)
    put_tokenizer(original, tokenizer)
    last = max(tokenizer["model"]["vocab"].values())
    last = max([last, *(token["id"] for token in tokenizer.get("added_tokens") or ())])
    keys, _ = vocabulary_keys(original, {}, last + 40)
    expected = tokenizers.Tokenizer.from_file(str(original / "tokenizer.json"))
    found = files_of(dict(keys), again)
    for text in TEXTS:
        assert found.encode(text) == expected.encode(text).ids, text
    assert found.vocab_size == expected.get_vocab_size(), "rows without a token are none"


def test_named_templates_are_all_kept(tmp_path: Path) -> None:
    keys = byte_level_keys() | {
        "tokenizer.chat_templates": ["tools"],
        "tokenizer.chat_template.tools": "{{ 'with tools' }}",
    }
    write_text_files(keys, "model.gguf", tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert [entry["name"] for entry in settings["chat_template"]] == ["default", "tools"]
    template = load_template(text_model(tmp_path))
    assert template is not None and "im_start" in template.render(
        [{"role": "user", "content": "a"}]
    )


def test_tokens_that_end_an_answer_are_told(tmp_path: Path) -> None:
    keys = byte_level_keys() | {"tokenizer.ggml.eot_token_id": np.uint32(5)}
    write_text_files(keys, "model.gguf", tmp_path)
    found = json.loads((tmp_path / "generation_config.json").read_text())
    assert found == {"bos_token_id": 1, "eos_token_id": [2, 0, 5], "pad_token_id": 2}


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("sentencepiece", "llama"),
        ("sentencepiece", "phi3"),
        ("gemma", "gemma2"),
        ("qwen2", "qwen2"),
    ],
)
def test_transformers_tokenizes_alike(name: str, family: str, tmp_path: Path) -> None:
    """It chooses a class by the family, which may have ideas of its own."""
    transformers = pytest.importorskip("transformers")
    put_tokenizer(tmp_path, tokenizer_named(name))
    expected = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    keys, _ = vocabulary_keys(tmp_path, {}, expected.get_vocab_size())
    write_text_files(dict(keys), "model.gguf", tmp_path)
    write_json(tmp_path / "config.json", tiny_config(family))
    found = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert found(text)["input_ids"] == expected.encode(text).ids, text
