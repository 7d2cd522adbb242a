"""Our constraints as llguidance's grammars, and the limits that both sides compile them under."""

import json
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits

from runtime.engine.constraint import Constraint, ConstraintError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

JSON_OPTIONS: "JsonCompileOptions" = {
    "whitespace_pattern": r"[ ]|\n[ \t]{0,64}",
    "lenient": False,
    "coerce_one_of": False,
}
"""A space, or a new line and its indentation: a model may print its JSON nicely, yet never lose
itself in white space."""

MAX_ERROR_CHARACTERS = 300


def limits() -> LLParserLimits:
    """Work of one step, and memory of one grammar (1-2 kB for each state of the lexer)."""
    return LLParserLimits(
        max_items_in_row=2_000,
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        max_lexer_states=20_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def grammar_of(constraint: Constraint) -> str:
    """Raises ConstraintError for a schema that is no JSON object."""
    try:
        if constraint.kind == "json_schema":
            return LLMatcher.grammar_from_json_schema(constraint.text, overrides=JSON_OPTIONS)
        if constraint.kind == "regex":
            return LLMatcher.grammar_from_regex(constraint.text)
        return LLMatcher.grammar_from_lark(constraint.text)
    except ValueError as error:
        raise ConstraintError(shortened(str(error))) from error


def inline_schema(schema: Any) -> str:
    """A JSON schema as a part of a Lark grammar."""
    return "%json " + json.dumps({**_as_object(schema), "x-guidance": JSON_OPTIONS})


def shortened(error: str) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in error.splitlines()]
    text = next((line.removeprefix("error: ") for line in lines if line.startswith("error:")), "")
    text = text or next((line for line in lines if line), "it cannot be compiled")
    return text if len(text) <= MAX_ERROR_CHARACTERS else text[:MAX_ERROR_CHARACTERS] + "..."


def _as_object(schema: Any) -> dict[str, Any]:
    return schema if isinstance(schema, dict) else {} if schema else {"not": {}}
