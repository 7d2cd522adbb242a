"""The task of the process that compiles untrusted grammars before the engine does."""

import json
import time
from functools import cache

from llguidance import LLMatcher, LLTokenizer
from llguidance._tokenizer import TokenizerWrapper

from runtime.confined.messages import Refused
from runtime.engine.constraint import Constraint, ConstraintError, ConstraintKind
from runtime.text.grammar.dialect import grammar_of, limits, shortened
from runtime.text.grammar.gbnf import to_lark
from runtime.text.grammar.schema import prepare

MAX_BYTES = 64 * 1024
COMPILE_SECONDS = 0.5
_STEPS = 16


def check(kind: str, text: str) -> tuple[str, str]:
    """Kind and text of the constraint that says the same and can be enforced. Refused otherwise.

    kind: a ConstraintKind, or "gbnf" for llama.cpp's grammars.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise Refused(f"it is longer than {MAX_BYTES} bytes", "too_large")
    ready = _constraint(kind, text)
    try:
        grammar = grammar_of(ready)
    except ConstraintError as error:
        raise Refused(str(error)) from error
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=limits())
    if failed or messages:
        raise Refused(shortened(messages[0]) if messages else "it cannot be compiled")
    _begin(grammar)
    return ready.kind, ready.text


def _begin(grammar: str) -> None:
    """Do once what the engine will do: compile, and walk some way along a text of single bytes.
    What is too complex for one step, or has no text at all, shows here."""
    start = time.process_time()
    matcher = LLMatcher(_bytes_only(), grammar, log_level=0, limits=limits())
    for step in range(_STEPS):
        mask = matcher.compute_bitmask()
        spent = time.process_time() - start
        if spent > COMPILE_SECONDS:
            raise Refused(f"it is too complex: it takes {spent:.1f} s of processor time to compile")
        if matcher.is_error():
            raise Refused(shortened(matcher.get_error()))
        allowed = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
        if not allowed and not step and not matcher.is_accepting():
            raise Refused("no text fits it")
        if not allowed or not matcher.consume_token(allowed[step * 7919 % len(allowed)]):
            return


class _Bytes:
    """A vocabulary of single bytes and an ending."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@cache
def _bytes_only() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()))


def _constraint(kind: str, text: str) -> Constraint:
    if kind == "gbnf":
        return Constraint("lark", to_lark(text))
    if kind == "json_schema":
        return Constraint("json_schema", json.dumps(prepare(_parsed(text))))
    kinds: dict[str, ConstraintKind] = {"regex": "regex", "lark": "lark"}
    return Constraint(kinds[kind], text)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"it is not JSON: {error}") from error


def _warm() -> None:
    check("json_schema", '{"type": "object", "properties": {"a": {"pattern": "^a+$"}}}')
    check("regex", "[0-9]{3}")
    check("gbnf", 'root ::= "a" root | "b"')


_warm()
TASKS = {"check": check}
