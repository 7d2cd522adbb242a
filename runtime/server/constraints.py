"""What asks for constrained answers, in the words of OpenAI, vLLM, SGLang and llama.cpp."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from runtime.engine.constraint import Constraint
from runtime.engine.request import RequestError
from runtime.text.grammar.check import Source, checked, choice_constraint, schema_constraint

Check = Callable[[], Constraint]
_ANY_OBJECT = {"type": "object"}
_CODE = "unsupported_field"


class ConstraintFields(BaseModel):
    """At most one of them may ask for something. Checked by `constraint_of`."""

    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    regex: Any = None
    grammar: Any = None
    json_schema: Any = None


async def constraint_of(body: ConstraintFields) -> Constraint | None:
    """What the answers must be; None for any text. RequestError naming the field for what cannot
    be honoured, or for two constraints at once. The work is done off the event loop."""
    asked = [*_asked(body)]
    if not asked:
        return None
    if len(asked) > 1:
        names = ", ".join(f"'{name}'" for name, _ in asked)
        raise RequestError(f"only one constraint can hold, but {names} are given", asked[1][0])
    return await run_in_threadpool(asked[0][1])


def asks_for_constraint(body: ConstraintFields) -> bool:
    return any(True for _ in _asked(body))


def _asked(body: ConstraintFields) -> Iterator[tuple[str, Check]]:
    if body.response_format is not None:
        check = _response_format(body.response_format)
        if check is not None:
            yield "response_format", check
    if body.structured_outputs:
        yield "structured_outputs", _structured_outputs(body.structured_outputs)
    for name, make in _SIMPLE.items():
        value = getattr(body, name)
        if value is not None and value != "":
            yield name, make(value, name)


def _response_format(value: Any) -> Check | None:
    """OpenAI's, and llama.cpp's json_object with a schema of its own. A schema is always enforced,
    whether `strict` is asked for or not."""
    name = "response_format"
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")
        return partial(schema_constraint, _ANY_OBJECT if schema is None else schema, name)
    if kind == "json_schema":
        described = value.get("json_schema")
        schema = described.get("schema") if isinstance(described, dict) else None
        if schema is None:
            raise RequestError(f"'{name}' needs json_schema.schema", name)
        return partial(schema_constraint, schema, name)
    if kind == "regex":
        return _text("regex")(value.get("pattern"), name)
    raise RequestError(
        f"'{name}' must be an object whose type is text, json_object, json_schema or regex", name
    )


def _structured_outputs(value: Any) -> Check:
    """vLLM's object; each member is what the `guided_*` field of its name asks for."""
    name = "structured_outputs"
    if not isinstance(value, dict):
        raise RequestError(f"'{name}' must be an object", name)
    given = {key: one for key, one in value.items() if one is not None and one is not False}
    given.pop("disable_fallback", None)
    unknown = sorted(given.keys() - _MEMBERS.keys())
    if unknown:
        raise RequestError(f"'{name}.{unknown[0][:60]}' is not supported", name, _CODE)
    if len(given) != 1:
        raise RequestError(f"'{name}' must hold one of {', '.join(_MEMBERS)}", name)
    ((key, one),) = given.items()
    return _MEMBERS[key](one, name)


def _schema(value: Any, name: str) -> Check:
    """A schema, or the text of one."""
    if isinstance(value, str):
        return partial(checked, "json_schema", value, name)
    return partial(schema_constraint, value, name)


def _object(value: Any, name: str) -> Check:
    return partial(schema_constraint, _ANY_OBJECT, name)


def _choice(value: Any, name: str) -> Check:
    return partial(choice_constraint, value, name)


def _text(source: Source) -> Callable[[Any, str], Check]:
    def make(value: Any, name: str) -> Check:
        if not isinstance(value, str) or not value:
            raise RequestError(f"'{name}' must hold a text", name)
        return partial(checked, source, value, name)

    return make


def _grammar(value: Any, name: str) -> Check:
    """vLLM's grammars are GBNF or Lark, which differ in how a rule is written."""
    is_gbnf = isinstance(value, str) and "::=" in value
    return _text("gbnf" if is_gbnf else "lark")(value, name)


_MEMBERS: dict[str, Callable[[Any, str], Check]] = {
    "json": _schema,
    "json_object": _object,
    "regex": _text("regex"),
    "choice": _choice,
    "grammar": _grammar,
}
_SIMPLE: dict[str, Callable[[Any, str], Check]] = {
    "guided_json": _schema,
    "guided_regex": _text("regex"),
    "guided_choice": _choice,
    "guided_grammar": _grammar,
    "regex": _text("regex"),
    "grammar": _text("gbnf"),
    "json_schema": _schema,
}
