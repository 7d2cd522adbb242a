"""/openapi.json is true: what it allows is answered as it says, and nothing else gets through."""

from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import numpy as np
import numpy.typing as npt
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CHECKS, load_all_checks

from runtime.engine.batch import StepBatch
from runtime.server.openapi import OPERATIONS, Operation, document
from tests.runtime.server.harness import Running, ScriptedExecutor, running

load_all_checks()
_CHECKS = CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    ]
)


class EmbeddingExecutor(ScriptedExecutor):
    """Its hidden rows are all the same."""

    def hidden(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        return np.ones((len(batch.logit_rows), 4), np.float32)


@pytest.fixture(scope="module")
def short() -> Iterator[Running]:
    """Answers are short, since the context is."""
    with running(EmbeddingExecutor(max_positions=48, num_pages=512)) as server:
        yield server


@pytest.fixture(scope="module")
def api(short: Running) -> Any:
    return schemathesis.openapi.from_url(f"{short.url}/openapi.json")


@pytest.mark.parametrize("place", OPERATIONS, ids=lambda one: one.path)
def test_what_is_allowed_is_answered_as_described(api: Any, place: Operation) -> None:
    statuses = set()

    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=api[place.path][place.method.upper()].as_strategy())
    def check(case: Any) -> None:
        statuses.add(case.call_and_validate(checks=_CHECKS).status_code)

    check()
    assert 200 in statuses, "nothing that the document allows was answered"


CALL = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"city": "Oslo"}'}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "Rain."}
THOUGHT = {
    "type": "reasoning",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "Hm"}],
}


@pytest.mark.parametrize(
    "given",
    [
        "Hi",
        [{"role": "user", "content": "Hi"}],
        [
            {
                "type": "message",
                "role": "developer",
                "content": [{"type": "input_text", "text": "a"}],
            }
        ],
        [CALL, OUTPUT],
        [CALL, {**OUTPUT, "output": [{"type": "input_text", "text": "Rain."}]}],
        [{"role": "user", "content": "Hi"}, THOUGHT, CALL, OUTPUT],
    ],
)
def test_every_input_of_a_response_is_described_and_answered(server: Running, given: Any) -> None:
    schema = document()["components"]["schemas"]["ResponseBody"]["properties"]["input"]
    jsonschema.validate(given, schema)
    body = {"input": given, "max_output_tokens": 1}
    answer = httpx.post(f"{server.url}/v1/responses", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    jsonschema.validate([*answer.json()["output"], *([] if given == "Hi" else given)], schema)


@pytest.mark.parametrize(
    "given", [[], [5], [{"role": "user"}], [{"type": "function_call", "call_id": "c"}]]
)
def test_no_input_of_a_response_is_described_that_is_none(server: Running, given: Any) -> None:
    schema = document()["components"]["schemas"]["ResponseBody"]["properties"]["input"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(given, schema)
    answer = httpx.post(f"{server.url}/v1/responses", json={"input": given}, timeout=60)
    assert answer.status_code == 400


def test_every_field_that_is_honoured_is_described(short: Running) -> None:
    found = httpx.get(f"{short.url}/openapi.json", timeout=60).json()
    schemas = found["components"]["schemas"]
    for body, field in (
        ("ChatBody", "messages"),
        ("ChatBody", "response_format"),
        ("CompletionBody", "echo"),
        ("EmbeddingBody", "pooling"),
        ("ResponseBody", "max_output_tokens"),
    ):
        assert field in schemas[body]["properties"]
    assert found["openapi"].startswith("3.1") and len(found["paths"]) >= 9
