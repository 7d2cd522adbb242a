import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLParserLimits

from runtime.engine.constraint import Constraint, ConstraintError
from runtime.engine.request import SamplingParams
from runtime.text.grammar import compiler
from runtime.text.grammar.compiler import GrammarCompiler, TokenMatcher
from tests.runtime.server.harness import tiny_tokenizer
from tests.runtime.text.grammar.harness import RandomModel, answers, request, text_of, tiny_grammars

OBJECT = Constraint("json_schema", '{"type": "object"}')


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("vocab", [392, 20_000])
def test_what_may_come_agrees_in_every_form(share: float, vocab: int) -> None:
    bits = np.random.default_rng(0).random(-(-vocab // 32) * 32) < share
    matcher = TokenMatcher(None, bits.size // 32, vocab)  # type: ignore[arg-type]
    matcher._words[:] = np.packbits(bits, bitorder="little").view(np.uint32)
    expected = np.flatnonzero(bits[:vocab]).tolist()
    assert matcher.allowed().tolist() == expected
    assert [i for i in range(vocab) if matcher.permits(i)] == expected
    forbidden = matcher.forbidden()
    assert (forbidden is not None) == (share >= 0.9)
    if forbidden is not None:
        assert sorted([*expected, *forbidden.tolist()]) == list(range(vocab))


def test_no_token_beyond_the_tokenizer_is_allowed() -> None:
    matcher = tiny_grammars().matcher(Constraint("regex", "(.|\\n)*"))
    matcher.compute()
    assert matcher.allowed().max() < tiny_tokenizer().vocab_size < RandomModel().vocab_size


def test_answers_do_not_depend_on_what_others_were_asked() -> None:
    fresh = GrammarCompiler(tiny_tokenizer, RandomModel().vocab_size)
    one = request("x", OBJECT, max_tokens=60)
    first = answers([one], RandomModel(eager=1.0))["x"].tokens
    for _ in range(2):
        matcher = fresh.matcher(OBJECT)
        for token in first:
            matcher.compute()
            assert matcher.permits(token)
            matcher.accept(token)


# A grammar wants DEL escaped, which JSON leaves to its writers.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_every_document_is_a_text_of_the_schema_of_all(value: Any) -> None:
    """Nothing that json prints is locked out."""
    matcher = tiny_grammars().matcher(Constraint("json_schema", "{}"))
    for token in tiny_tokenizer().encode(json.dumps(value, ensure_ascii=False)):
        matcher.compute()
        assert matcher.permits(token), value
        matcher.accept(token)


def test_a_token_that_is_not_allowed_leads_nowhere() -> None:
    matcher = tiny_grammars().matcher(Constraint("regex", "[0-9]+"))
    (letter,) = tiny_tokenizer().encode("a")
    matcher.accept(letter)
    assert not matcher.finished
    with pytest.raises(ConstraintError, match="cannot be held to its constraint"):
        matcher.compute()


def test_what_cannot_be_compiled_says_why() -> None:
    for constraint in (
        Constraint("regex", "["),
        Constraint("lark", "nothing"),
        Constraint("json_schema", "[]"),
        Constraint("json_schema", '{"type": "nonsense"}'),
    ):
        with pytest.raises(ConstraintError) as caught:
            tiny_grammars().matcher(constraint)
        assert 0 < len(str(caught.value)) < 400


def test_a_grammar_that_grows_too_large_ends_its_request_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Case A6: one step's work is bounded, and a grammar may need more of it later on."""
    little = LLParserLimits(step_lexer_fuel=150, verbose_errors=False)
    monkeypatch.setattr(compiler, "limits", lambda: little)
    bomb = Constraint("regex", "abc(.*[a-m].{60})+")
    free = request("free", None, max_tokens=30)
    tight = GrammarCompiler(tiny_tokenizer, RandomModel().vocab_size)
    found = answers([request("bomb", bomb, max_tokens=200), free], grammars=tight)
    end = found["bomb"].end
    assert end.finish_reason == "error" and end.error is not None
    assert "cannot be held to its constraint" in end.error
    assert "abc".startswith(found["bomb"].text[:3]), "and nothing unconstrained was given out"
    assert found["free"].end.finish_reason in ("length", "stop")


def test_a_failure_of_the_library_ends_the_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case A6: native code that panics raises what is no Exception."""

    class Panic(BaseException):
        pass

    class Panics:
        def unsafe_compute_mask_ptr(self, *_: object) -> None:
            raise Panic("index out of bounds")

    real = GrammarCompiler.matcher

    def faulty(self: GrammarCompiler, constraint: Constraint) -> Any:
        matcher = real(self, constraint)
        if constraint.kind == "regex":
            matcher._matcher = Panics()  # type: ignore[assignment]
        return matcher

    monkeypatch.setattr(GrammarCompiler, "matcher", faulty)
    found = answers(
        [request("bad", Constraint("regex", "a+")), request("fine", OBJECT)], RandomModel(eager=3.0)
    )
    assert found["bad"].end.finish_reason == "error" and not found["bad"].tokens
    assert found["fine"].end.finish_reason == "stop"


def test_greedy_answers_are_the_same_alone_and_together() -> None:
    greedy = SamplingParams(temperature=0.0, logit_bias={7: 2.0}, presence_penalty=0.5)
    asked = [
        request(f"r{i}", OBJECT, sampling=greedy, prompt=(i, i + 1), max_tokens=60)
        for i in range(5)
    ]
    alone = {one.request_id: answers([one])[one.request_id].tokens for one in asked}
    together = answers(asked, RandomModel(num_pages=30))
    assert {name: answer.tokens for name, answer in together.items()} == alone
    assert all(text_of(tokens[:1]) == "{" for tokens in alone.values())
