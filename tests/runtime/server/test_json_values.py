"""What a body would make is counted before it is made."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.server.json_values import MAX_VALUES, overfull_field

LEAVES = st.one_of(st.integers(), st.text(alphabet='a"\\,[{:1 \n', max_size=5), st.booleans())
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


def count(value: Any) -> int:
    """The slow way: texts, lists and objects, the names of numbers left out."""
    if isinstance(value, str):
        return 1
    if isinstance(value, list):
        return 1 + sum(map(count, value))
    if isinstance(value, dict):
        return 1 + sum(count(one) + (not is_number(one)) for one in value.values())
    return 0


def is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), st.integers(0, 12))
def test_it_is_what_counting_after_parsing_gives(found: dict[str, Any], limit: int) -> None:
    field = overfull_field(json.dumps(found, ensure_ascii=False).encode(), limit)
    if count(found) > limit:
        assert field is not None
    # Numbers that follow each other by name count as one, and what is between them counts too.
    if 2 * count(found) <= limit:
        assert field is None


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (["a"] * (MAX_VALUES + 1), "prompt"),
        ([[] for _ in range(MAX_VALUES)], "prompt"),
        ({str(one): "x" for one in range(MAX_VALUES)}, "prompt"),
        ([{"prompt": "a"}] * MAX_VALUES, "prompt"),
        (list(range(200_000)), None),
        ({str(one): -100 for one in range(200_000)}, None),
        ('"' * 200_000, None),
        ("[{" * 200_000, None),
        (["a"] * (MAX_VALUES // 2), None),
    ],
)
def test_the_field_is_named(value: object, field: str | None) -> None:
    body = {"model": "a", "n": 1, "stop": ["b"], "prompt": value, "messages": []}
    assert overfull_field(json.dumps(body).encode()) == field


@pytest.mark.parametrize("unit", [b'"', b'\\"', b'"\\', b'{"a":', b'"a":1,', b'"a":-', b'" ', b"["])
def test_what_is_no_json_takes_no_longer(unit: bytes) -> None:
    """Time is linear: eight times as much text takes not eight times eight times as long."""

    def seconds(size: int) -> float:
        body = b'"' + unit * (size // len(unit))
        start = time.thread_time()
        overfull_field(body)
        return time.thread_time() - start

    small = min(seconds(1 << 18) for _ in range(3))
    assert min(seconds(1 << 21) for _ in range(3)) < 8 * 4 * small + 0.01
