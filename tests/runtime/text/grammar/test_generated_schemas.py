"""Answers at temperature 1 satisfy their schemas, as an independent validator reads them."""

import json
from typing import Any

import jsonschema

from runtime.engine.constraint import Constraint
from runtime.text.grammar.check import schema_constraint
from tests.runtime.text.grammar.harness import RandomModel, answers, request
from tests.runtime.text.grammar.schemas import random_schema

NUM_SCHEMAS = 200


def test_two_hundred_schemas_are_satisfied() -> None:
    schemas = {f"schema {seed}": random_schema(seed) for seed in range(NUM_SCHEMAS)}
    constraints = {name: schema_constraint(schema, "x") for name, schema in schemas.items()}
    requests = [request(name, constraint) for name, constraint in constraints.items()]
    found = answers(requests, RandomModel(eager=3.0), max_waiting=NUM_SCHEMAS)
    assert len(found) == NUM_SCHEMAS
    for name, answer in found.items():
        assert answer.end.finish_reason == "stop", (name, answer.text, answer.end, schemas[name])
        validate(answer.text, schemas[name])
    distinct = {answer.text for answer in found.values()}
    assert len(distinct) > NUM_SCHEMAS // 2, "the answers do not depend on their schemas"


def validate(text: str, schema: dict[str, Any]) -> None:
    value = json.loads(text)
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)


def test_the_validator_can_fail() -> None:
    schema = random_schema(3)
    broken = json.dumps({"nothing": "like it"})
    try:
        validate(broken, {**schema, "not": {"required": ["nothing"]}})
    except jsonschema.ValidationError:
        return
    raise AssertionError("the validator lets everything through")


def test_what_the_limit_cuts_off_says_so() -> None:
    schema = schema_constraint({"type": "string", "minLength": 200}, "x")
    (answer,) = answers([request("cut", schema, max_tokens=10)]).values()
    assert answer.end.finish_reason == "length" and len(answer.tokens) == 10
    assert answer.text.startswith('"')


def test_a_text_that_is_complete_at_the_limit_is_not_cut() -> None:
    constraint = Constraint("json_schema", '{"const": true}')
    (whole,) = answers([request("whole", constraint)]).values()
    (exact,) = answers([request("exact", constraint, max_tokens=len(whole.tokens))]).values()
    assert whole.text == exact.text == "true"
    assert whole.end.finish_reason == exact.end.finish_reason == "stop"
