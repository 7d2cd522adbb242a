import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

from runtime.confined.messages import Refused
from runtime.engine.constraint import Constraint
from runtime.engine.request import RequestError
from runtime.text.grammar.check import schema_constraint
from runtime.text.grammar.schema import ANNOTATIONS, FORMATS, HONOURED, REFUSED, prepare
from tests.runtime.text.grammar.harness import RandomModel, answers, request


def keywords_of_all_drafts() -> Iterator[str]:
    """Of every published metaschema and vocabulary."""
    for uri in REGISTRY:
        yield from REGISTRY.contents(uri).get("properties", {})


def test_every_keyword_of_every_draft_is_known() -> None:
    known = {*HONOURED, *REFUSED, *ANNOTATIONS}
    found = set(keywords_of_all_drafts())
    assert {"type", "unevaluatedItems", "extends", "$recursiveRef"} <= found
    assert found <= known, sorted(found - known)


@pytest.mark.parametrize("keyword", REFUSED)
def test_what_cannot_be_enforced_is_refused_by_name_and_place(keyword: str) -> None:
    part: dict[str, Any] = {keyword: {}}
    if keyword in ("if", "then", "else"):
        part = {"if": {}, "then": {"type": "null"}, keyword: {}}
    schema = {"type": "object", "properties": {"a": {"anyOf": [part]}}}
    with pytest.raises(Refused, match=r"the keyword '.*' at /properties/a/anyOf/0 cannot be"):
        prepare(schema)
    with pytest.raises(RequestError, match="keyword"):
        schema_constraint(schema, "response_format")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "http://127.0.0.1:1/x"}, "nothing is fetched"),
        ({"$ref": "other.json"}, "nothing is fetched"),
        ({"$ref": "#/nowhere"}, "does not exist"),
        ({"type": "string", "format": "password"}, "'format'"),
        ({"minProperties": 2, "additionalProperties": {}}, "'minProperties'"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "'oneOf'"),
        ({"type": "object", "properties": {"a": {}}, "maxProperties": 0.5}, "maxProperties"),
        ({"properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 2}, "'maxProperties'"),
        ({"patternProperties": {"^a": {}, "a$": {"type": "null"}}}, "'patternProperties'"),
        ({"type": "string", "pattern": r"\bx"}, "word boundaries"),
        ({"type": "string", "pattern": "(?=x)"}, "look-around"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
        ({"enum": []}, "empty"),
        (False, "no document satisfies it"),
        ({"definitions": {"a": {"not": {}}}, "x": {"uniqueItems": True}}, "/definitions/a"),
        ({"$ref": "#/hidden", "hidden": {"uniqueItems": True}}, "'uniqueItems' at #/hidden"),
    ],
)
def test_what_else_cannot_be_enforced_is_refused(schema: Any, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        schema_constraint(schema, "x")
    assert words in str(caught.value) and caught.value.param == "x"


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"type": "array", "uniqueItems": False, "unevaluatedItems": True},
        {"type": "null", "if": {"const": 1}},
        {"type": "integer", "format": "int32"},
        {"type": "object", "properties": {"not": {"type": "null"}, "if": {}}},
        {"enum": [{"not": 1, "x-guidance": {}}]},
        {"const": {"contains": 1}},
        {"type": "string", "nullable": True, "x-order": 3, "deprecated": True},
        *({"type": "string", "format": name} for name in FORMATS),
    ],
)
def test_what_says_nothing_more_is_accepted(schema: Any) -> None:
    json.loads(schema_constraint(schema, "x").text)


def test_white_space_is_bounded() -> None:
    """A model that loves white space gets a document all the same."""
    spaces = {i: 50.0 for i in range(384) if _is_space(i)}
    constraint = Constraint(
        "json_schema", '{"type": "array", "items": {"const": 1}, "minItems": 2}'
    )
    one = request("x", constraint, max_tokens=300)
    sampling = one.sampling.__class__(temperature=0.0, logit_bias=spaces)
    (answer,) = answers([request("x", constraint, sampling=sampling)], RandomModel()).values()
    longest = max(map(len, answer.text.replace("\n", " ").split("1")))
    assert answer.text.strip().startswith("[") and longest < 200


def _is_space(token: int) -> bool:
    from tests.runtime.server.harness import tiny_tokenizer

    return tiny_tokenizer().token_bytes(token).isspace()
