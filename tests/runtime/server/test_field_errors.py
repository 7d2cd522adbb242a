"""A wrong field is told in a sentence that its writer understands."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime.server.field_errors import first_fault
from runtime.server.schemas import ChatBody

HI = [{"role": "user", "content": "Hi"}]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    mode: Literal["fast", "slow"] | None = None
    named: dict[str, Annotated[int, Field(gt=0)]] | None = None


def fault(model: type[BaseModel], fields: dict[str, Any]) -> tuple[str, str | None]:
    with pytest.raises(ValidationError) as failed:
        model.model_validate(fields)
    return first_fault(failed.value, fields)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"n": 17}, "'n' must be at most 16"),
        ({"n": 0}, "'n' must be at least 1"),
        ({"n": 1.5}, "'n' must be a whole number"),
        ({"n": "2"}, "'n' must be a whole number"),
        ({"temperature": 2.5}, "'temperature' must be at most 2"),
        ({"temperature": "hot"}, "'temperature' must be a number"),
        ({"top_p": 0}, "'top_p' must be above 0"),
        ({"timeout_seconds": float("inf")}, "'timeout_seconds' must be a finite number"),
        ({"stream": "yes"}, "'stream' must be true or false"),
        ({"model": 5}, "'model' must be a string"),
        ({"stop": 5}, "'stop' must be a string, or must be a list"),
        ({"stop": ["a", ""]}, "'stop[1]' must have at least 1 character"),
        ({"stop": ["a"] * 17}, "must have at most 16 entries"),
        ({"stop": "x" * 2000}, "must have at most 1024 characters"),
        ({"stop_token_ids": {}}, "'stop_token_ids' must be a list"),
        ({"logit_bias": []}, "'logit_bias' must be an object"),
        ({"stream_options": 5}, "'stream_options' must be an object"),
        (
            {"stream_options": {"include_usage": 1}},
            "'stream_options.include_usage' must be true or false",
        ),
        (
            {"stream_options": {"include_obfuscation": True}},
            "'stream_options.include_obfuscation' must be false",
        ),
        ({"reasoning_format": "loud"}, "'reasoning_format' must be 'auto', 'deepseek' or 'none'"),
        ({"messages": []}, "'messages' must have at least 1 entry"),
        ({"messages": "Hi"}, "'messages' must be a list"),
    ],
)
def test_what_is_wrong_with_a_field(fields: dict[str, Any], sentence: str) -> None:
    found, name = fault(ChatBody, {"messages": HI, **fields})
    assert sentence in found and name == next(iter(fields)), found


def test_what_is_missing_or_unknown() -> None:
    assert fault(ChatBody, {}) == ("'messages' is missing", "messages")
    assert fault(Strict, {"speed": 1}) == ("'speed' is not known here; leave it out", "speed")
    assert fault(Strict, {"named": {"a": 0}}) == ("'named.a' must be above 0", "named")
    assert fault(Strict, {"mode": "x"})[0] == "'mode' must be 'fast' or 'slow'"
    assert fault(ChatBody, [])[0].startswith("the body ")  # type: ignore[arg-type]
