"""Masks mean the tokens that this tokenizer writes, whatever container it came in."""

import json
from collections.abc import Callable

import pytest

from runtime.engine.constraint import Constraint
from runtime.engine.request import SamplingParams
from runtime.text.gguf_tokenizer import build_tokenizer
from runtime.text.grammar.compiler import GrammarCompiler
from runtime.text.tokenizer import Tokenizer, gguf_tokenizer
from tests.runtime.server.harness import tiny_tokenizer
from tests.runtime.text.gguf_keys import byte_level_keys, sentence_piece_keys
from tests.runtime.text.grammar.harness import RandomModel, answers, request

TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "tokenizer.json": tiny_tokenizer,
    "GGUF byte-level": lambda: gguf_tokenizer(byte_level_keys(), "x.gguf"),
    "GGUF SentencePiece": lambda: gguf_tokenizer(sentence_piece_keys(), "x.gguf"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_both_sides_know_the_same_bytes(kind: str) -> None:
    tokenizer: Tokenizer = TOKENIZERS[kind]()
    theirs = GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size)._prepared()
    for token in set(range(tokenizer.vocab_size)) - tokenizer.special_ids:
        # The one byte that no UTF-8 has is theirs to mark special tokens with.
        ours = tokenizer.token_bytes(token)
        assert ours == b"\xff" or theirs.decode_bytes([token]) == ours, token
    assert sorted(theirs.eos_tokens) == sorted(tokenizer.ending_ids)
    assert all(theirs.is_special_token(token) for token in tokenizer.special_ids)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_document_is_followed_to_its_end(kind: str) -> None:
    tokenizer: Tokenizer = TOKENIZERS[kind]()
    text = '{"the press": ["é the", 1.5, null], "日本": {}}'
    matcher = GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size + 5).matcher(
        Constraint("json_schema", '{"type": "object"}')
    )
    tokens: list[int] = []
    data = text.encode()
    by_bytes = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    while data:
        size = next(n for n in range(len(data), 0, -1) if data[:n] in by_bytes)
        tokens.append(by_bytes[data[:size]])
        data = data[size:]
    for token in tokens:
        assert token is not None
        matcher.compute()
        assert matcher.permits(token) and token in matcher.allowed()
        assert not any(matcher.permits(end) for end in tokenizer.ending_ids)
        matcher.accept(token)
    assert matcher.finished


def test_a_tokenizer_without_endings_ends_where_nothing_may_follow() -> None:
    keys = sentence_piece_keys()
    del keys["tokenizer.ggml.eos_token_id"]
    keys["tokenizer.ggml.token_type"][2] = 1
    tokenizer = Tokenizer(build_tokenizer(keys, "x"), source="x")
    assert not tokenizer.ending_ids
    matcher = GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size).matcher(
        Constraint("regex", "in?")
    )
    for text in ("i", "n"):
        token = tokenizer.id_of(text)
        assert token is not None
        matcher.compute()
        assert not {*matcher.allowed().tolist()} & tokenizer.special_ids
        matcher.accept(token)
    assert matcher.finished


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guesses_change_nothing(temperature: float) -> None:
    """Prompt lookup guesses tokens, also ones that the grammar forbids."""
    schema = {"type": "array", "items": {"const": "the press"}, "minItems": 6, "maxItems": 6}
    constraint = Constraint("json_schema", json.dumps(schema))
    prompt = tuple(tiny_tokenizer().encode('["the press", "the press", "the oil", "the'))
    sampling = SamplingParams(temperature=temperature, seed=5)
    one = request("x", constraint, prompt=prompt, sampling=sampling)
    plain = answers([one], RandomModel(eager=1.0))["x"]
    guessed = answers([one], RandomModel(eager=1.0), prompt_lookup=True)["x"]
    assert plain.tokens == guessed.tokens and plain.end.finish_reason == "stop"
    assert json.loads(plain.text) == ["the press"] * 6
