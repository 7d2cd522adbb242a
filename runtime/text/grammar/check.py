"""Clients' schemas, expressions and grammars become constraints here, or are refused."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from runtime.confined.messages import Refused
from runtime.confined.pool import Busy, ConfinedPool, Overrun
from runtime.engine.constraint import Constraint
from runtime.engine.request import RequestError
from runtime.text.grammar.counts import CheckCounts

MAX_BYTES = 64 * 1024
CODE = "invalid_constraint"
Source = Literal["json_schema", "regex", "lark", "gbnf"]
_WHAT: dict[Source, str] = {
    "json_schema": "the JSON schema",
    "regex": "the regular expression",
    "lark": "the grammar",
    "gbnf": "the grammar",
}


checks = CheckCounts((Refused, Overrun, Busy))
"""What came of all checks of this process."""


@cache
def grammar_pool() -> ConfinedPool:
    """The process that compiles what clients send; it gives way to the engine."""
    return ConfinedPool("runtime.text.grammar.checking", niceness=5)


def checked(source: Source, text: str, param: str) -> Constraint:
    """The constraint that `text` asks for. Takes milliseconds, and at most some seconds.

    Raises RequestError naming the field `param`: for what is too long, does not parse, takes more
    than its time or memory, or asks for what could not be enforced.
    """
    what = _WHAT[source]
    if len(text) > MAX_BYTES:
        raise RequestError(f"{what} in '{param}' is longer than {MAX_BYTES} bytes", param, CODE)
    try:
        with checks.timed():
            kind, ready = grammar_pool().call("check", source, text)
    except Refused as refusal:
        raise RequestError(f"{what} in '{param}' is refused: {refusal}", param, CODE) from refusal
    except Overrun as overrun:
        raise RequestError(f"{what} in '{param}' {overrun} to compile", param, CODE) from overrun
    except Busy as busy:
        raise RequestError(str(busy), param, "queue_full") from busy
    return Constraint(kind, ready)


def schema_constraint(schema: Any, param: str) -> Constraint:
    """A JSON document that `schema` describes; see `checked`."""
    if not isinstance(schema, dict | bool):
        raise RequestError(f"'{param}' must hold a JSON schema", param, CODE)
    return checked("json_schema", json.dumps(schema), param)


def choice_constraint(choices: object, param: str) -> Constraint:
    """One of these texts, word for word."""
    if (
        not isinstance(choices, Sequence)
        or isinstance(choices, str)
        or not choices
        or not all(isinstance(choice, str) and choice for choice in choices)
    ):
        raise RequestError(f"'{param}' must be a list of texts", param, CODE)
    texts = ["".join(f"\\x{{{ord(char):x}}}" for char in choice) for choice in choices]
    if sum(map(len, choices)) > MAX_BYTES // 8:
        raise RequestError(f"'{param}' holds more than {MAX_BYTES // 8} characters", param, CODE)
    return checked("regex", f"(?:{'|'.join(texts)})", param)
