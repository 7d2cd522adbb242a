import json
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from quant.format.errors import FileFormatError, InputError, UnsupportedModelError
from runtime.engine.request import RequestError
from runtime.text.pretokenize import RULES
from runtime.text.tokenizer import Tokenizer, load_tokenizer
from tests.runtime.text.gguf_keys import byte_level_keys, sentence_piece_keys, text_model
from tests.tiny import SPECIAL_TOKENS, TEXT, tokenizer_json, write_tokenizer

PIECES = st.sampled_from(
    [*SPECIAL_TOKENS, "12", " ", "  ", "\n", "'s", "the press", "é", "日", "🙂"]
)
TEXTS = st.lists(PIECES | st.text(max_size=8), max_size=8).map("".join)


@cache
def byte_level() -> Tokenizer:
    return load_tokenizer(text_model(keys=byte_level_keys()))


@cache
def sentence_piece() -> Tokenizer:
    return load_tokenizer(text_model(keys=sentence_piece_keys()))


@cache
def reference() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer_json())


def encodable(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


@given(TEXTS.filter(encodable))
def test_gguf_keys_give_the_ids_of_tokenizer_json(text: str) -> None:
    expected = reference().encode(text)
    assert byte_level().encode(text) == expected.ids
    for skip in (True, False):
        ours = byte_level().decode(expected.ids, skip_special_tokens=skip)
        assert ours == reference().decode(expected.ids, skip_special_tokens=skip)


@given(st.lists(st.integers(0, 383), max_size=12))
def test_any_ids_decode_as_the_library_decodes_them(ids: list[int]) -> None:
    assert byte_level().decode(ids) == reference().decode(ids)


def test_directory_and_gguf_agree_about_special_tokens(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    ours, other = load_tokenizer(text_model(tmp_path)), byte_level()
    assert (ours.bos_id, ours.eos_id) == (other.bos_id, other.eos_id) == (1, 2)
    assert ours.special_ids == other.special_ids == {0, 1, 2}
    assert ours.special_tokens == other.special_tokens
    assert ours.vocab_size == other.vocab_size == 384
    assert ours.ending_ids == {2}
    # A GGUF file names one ending token; llama.cpp ends at <|endoftext|> as well.
    assert other.ending_ids == {0, 2}


def test_generation_config_adds_ending_tokens(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 5]}')
    assert load_tokenizer(text_model(tmp_path)).ending_ids == {0, 2, 5}


def test_special_text_can_be_plain_text() -> None:
    text = "a<|im_end|>"
    assert byte_level().encode(text)[-1] == 2
    plain = byte_level().encode(text, parse_special=False)
    assert not byte_level().special_ids & set(plain)
    assert byte_level().decode(plain) == text


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    assert len(load_tokenizer(text_model(tmp_path)).encode("a" * 50)) > 4


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(RequestError, match="not valid Unicode"):
        byte_level().encode("a\ud800")


@given(st.text(max_size=40).filter(encodable))
def test_least_tokens_is_a_lower_bound(text: str) -> None:
    assert byte_level().least_tokens(text) <= len(byte_level().encode(text))


def best_pairs(text: str, keys: dict[str, Any]) -> list[str]:
    """SentencePiece BPE as its paper tells it: join the neighbours of the highest score, the
    leftmost of equals, until none are left; letters that are no token become their bytes."""
    rows = zip(
        keys["tokenizer.ggml.tokens"],
        keys["tokenizer.ggml.scores"],
        keys["tokenizer.ggml.token_type"],
        strict=True,
    )
    scores = {token: score for token, score, kind in rows if kind == 1}
    parts = list(("▁" + text.replace(" ", "▁")) if text else "")
    while True:
        joined = [(scores.get(a + b), -i) for i, (a, b) in enumerate(pairwise(parts))]
        best = max(((s, i) for s, i in joined if s is not None), default=None)
        if best is None:
            break
        at = -best[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    bytes_of = {part: [f"<0x{byte:02X}>" for byte in part.encode()] for part in parts}
    return [piece for part in parts for piece in ([part] if part in scores else bytes_of[part])]


@given(st.text(alphabet="thepresing ié🙂\n", max_size=20))
def test_scores_are_merged_as_sentence_piece_merges_them(text: str) -> None:
    keys = sentence_piece_keys()
    ids = sentence_piece().encode(text, add_special_tokens=False)
    assert [keys["tokenizer.ggml.tokens"][id_] for id_ in ids] == best_pairs(text, keys)
    assert sentence_piece().decode(ids) == text


def test_sentence_piece_starts_with_bos_unless_told_otherwise() -> None:
    assert sentence_piece().encode("the")[0] == 1
    keys = {**sentence_piece_keys(), "tokenizer.ggml.add_bos_token": False}
    assert load_tokenizer(text_model(keys=keys)).encode("the")[0] != 1
    keys = {**sentence_piece_keys(), "tokenizer.ggml.add_eos_token": True}
    assert load_tokenizer(text_model(keys=keys)).encode("the")[-1] == 2


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("llama-bpe", "12345 it'S", ["123", "45", "Ġit", "'S"]),
        ("qwen2", "12 it'S\n\n x", ["1", "2", "Ġit", "'S", "ĊĊ", "Ġx"]),
        ("gpt-2", "12345 it'S  x", ["12345", "Ġit", "'", "S", "Ġ", "Ġx"]),
        ("smollm", "a 12", ["a", "Ġ", "1", "2"]),
        ("default", "a$b 1234", ["a", "$", "b", "Ġ", "123", "4"]),
        ("tekken", "HelloWorld 12", ["Hello", "World", "Ġ", "1", "2"]),
        ("gpt-4o", "HelloWorld it'S 1234", ["Hello", "World", "Ġit'S", "Ġ", "123", "4"]),
    ],
)
def test_families_cut_words_by_their_own_rules(pre: str, text: str, words: Sequence[str]) -> None:
    cut = RULES[pre].build().pre_tokenize_str(text)
    assert [word for word, _ in cut] == list(words)


@given(st.sampled_from(sorted(RULES)), st.text(max_size=30).filter(encodable))
def test_no_rule_loses_a_byte(pre: str, text: str) -> None:
    keys = {**byte_level_keys(), "tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": False}
    tokenizer = _with_rule(pre, json.dumps(keys))
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


@cache
def _with_rule(pre: str, keys: str) -> Tokenizer:
    return load_tokenizer(text_model(keys=json.loads(keys)))


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"model": "bert"}, UnsupportedModelError, "tokenizer.ggml.model is 'bert'"),
        ({"pre": "klingon"}, UnsupportedModelError, "tokenizer.ggml.pre is 'klingon'"),
        ({"tokens": None}, FileFormatError, "tokenizer.ggml.tokens is missing"),
        ({"merges": []}, FileFormatError, "tokenizer.ggml.merges is missing or empty"),
        ({"merges": ["ab"]}, FileFormatError, "not a pair"),
        ({"merges": ["zq qz"]}, FileFormatError, "do not fit the vocabulary"),
        ({"token_type": [1]}, FileFormatError, "has 1 entries for 384 tokens"),
        ({"eos_token_id": 384}, FileFormatError, "eos_token_id is 384, outside 384"),
        ({"tokens": ["a", "a"]}, FileFormatError, "the same token twice"),
    ],
)
def test_keys_that_contradict_each_other(
    change: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    keys = byte_level_keys() | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(error, match=sentence):
        load_tokenizer(text_model(keys=keys))


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        load_tokenizer(text_model(tmp_path))


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FileFormatError, match="is not a tokenizer"):
        load_tokenizer(text_model(tmp_path))


def test_a_decoder_that_is_not_known(tmp_path: Path) -> None:
    state = json.loads(tokenizer_json())
    state["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(UnsupportedModelError, match="WordPiece"):
        load_tokenizer(text_model(tmp_path))


def test_real_text_round_trips() -> None:
    assert byte_level().decode(byte_level().encode(TEXT)) == TEXT
