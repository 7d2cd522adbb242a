"""Our constraints as llguidance's grammars, and the limits that both sides compile them under."""

from typing import TYPE_CHECKING

from runtime.engine.constraint import Constraint, ConstraintError
from runtime.text.grammar.options import JSON_OPTIONS

if TYPE_CHECKING:
    from llguidance import LLParserLimits

MAX_ERROR_CHARACTERS = 300


def limits() -> "LLParserLimits":
    """Work of one step, and memory of one grammar (1-2 kB for each state of the lexer)."""
    from llguidance import LLParserLimits

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
    from llguidance import LLMatcher

    try:
        if constraint.kind == "json_schema":
            return LLMatcher.grammar_from_json_schema(constraint.text, overrides=JSON_OPTIONS)
        if constraint.kind == "regex":
            return LLMatcher.grammar_from_regex(constraint.text)
        return LLMatcher.grammar_from_lark(constraint.text)
    except ValueError as error:
        raise ConstraintError(shortened(str(error))) from error


_IN_OUR_WORDS = {
    "oneOf constraints are not supported": (
        "the keyword 'oneOf' cannot be enforced unless its alternatives exclude each other"
    ),
    "min/maxProperties only supported": (
        "the keywords 'minProperties' and 'maxProperties' cannot be enforced beside properties "
        "that are not required"
    ),
    "patternProperty regexes": (
        "the keyword 'patternProperties' cannot be enforced with patterns that overlap"
    ),
    "lookarounds not supported": "word boundaries, and ^ or $ within an expression, cannot be used",
}


def shortened(error: str) -> str:
    """The first line that says something, in words that name the keyword."""
    for beginning, words in _IN_OUR_WORDS.items():
        if error.startswith(beginning):
            return words
    lines = [line.strip() for line in error.splitlines()]
    text = next((line.removeprefix("error: ") for line in lines if line.startswith("error:")), "")
    text = text or next((line for line in lines if line), "it cannot be compiled")
    return text if len(text) <= MAX_ERROR_CHARACTERS else text[:MAX_ERROR_CHARACTERS] + "..."
