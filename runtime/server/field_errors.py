"""What is wrong with a field, in words for whoever wrote it."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_PHRASES: Mapping[str, str | Callable[[Mapping[str, Any]], str]] = {
    "missing": "is missing",
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "extra_forbidden": "is not known here; leave it out",
    "greater_than": lambda found: f"must be above {found['gt']:g}",
    "greater_than_equal": lambda found: f"must be at least {_number(found['ge'])}",
    "less_than_equal": lambda found: f"must be at most {_number(found['le'])}",
    "too_short": lambda found: f"must have at least {_counted(found['min_length'], 'entry')}",
    "too_long": lambda found: f"must have at most {_counted(found['max_length'], 'entry')}",
    "string_too_short": lambda found: (
        f"must have at least {_counted(found['min_length'], 'character')}"
    ),
    "string_too_long": lambda found: (
        f"must have at most {_counted(found['max_length'], 'character')}"
    ),
    "literal_error": lambda found: f"must be {_as_json(found['expected'])}",
}
_PLURALS = {"entry": "entries", "character": "characters"}


def first_fault(error: ValidationError, fields: Mapping[str, Any]) -> tuple[str, str | None]:
    """A sentence about the first of `fields` that is wrong, and that field's name; the client's
    values are not echoed. Of a field that may be of several kinds, the kind that went furthest."""
    found = error.errors(include_url=False, include_input=False)
    name = found[0]["loc"][0] if found[0]["loc"] else None
    ours = [one for one in found if one["loc"] and one["loc"][0] == name] or found[:1]
    depth = max(len(one["loc"]) for one in ours)
    deepest = [one for one in ours if len(one["loc"]) == depth]
    where = _place(deepest[0], fields)
    same = [one for one in deepest if _place(one, fields) == where]
    phrases = dict.fromkeys(_phrase(one["type"], one.get("ctx", {}), one["msg"]) for one in same)
    subject = f"'{where}'" if where else "the body"
    return f"{subject} {', or '.join(phrases)}", None if name is None else str(name)


def _phrase(kind: str, context: Mapping[str, Any], otherwise: str) -> str:
    phrase = _PHRASES.get(kind, f"is wrong: {otherwise}")
    return phrase if isinstance(phrase, str) else phrase(context)


def _place(error: ErrorDetails, value: Any) -> str:
    """As `stop[3]` or `stream_options.include_usage`: what of pydantic's path leads through the
    client's own value, and the name of what is missing there."""
    text, path = "", error["loc"]
    absent = path[-1] if error["type"] == "missing" else None
    for part in path:
        if isinstance(value, Mapping) and (part in value or part == absent):
            text, value = f"{text}.{part}" if text else str(part), value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            text, value = f"{text}[{part}]", value[part]
    return text


def _counted(count: int, what: str) -> str:
    return f"{count} {what if count == 1 else _PLURALS[what]}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _as_json(values: str) -> str:
    return {"True": "true", "False": "false"}.get(values, values)
