"""API keys: what a file may hold, what each may use, and what guessing costs."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from quant.format.errors import InputError
from runtime.server.errors import ApiError
from runtime.server.guesses import FORGET_SECONDS, FREE_GUESSES, MAX_ADDRESSES, Guesses
from runtime.server.key_limits import KeyLimits
from runtime.server.keys import ApiKey, KeyRing, read_keys
from runtime.server.record import RequestRecord

SECRET = "a-key-of-some-length"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def written(path: Path, entries: Any) -> Path:
    path.write_text(yaml.safe_dump(entries))
    return path


def test_a_file_of_keys(tmp_path: Path) -> None:
    digest = sha256(b"another-key-of-length").hexdigest()
    path = written(
        tmp_path / "keys.yaml",
        [
            {"name": "alice", "key": SECRET, "requests_per_minute": 5, "admin": True},
            {"name": "bob", "sha256": digest, "concurrent": 2},
        ],
    )
    ring = read_keys(path)
    alice = ring.find(SECRET.encode())
    assert alice is not None and (alice.name, alice.requests_per_minute, alice.admin) == (
        "alice", 5, True,
    )  # fmt: skip
    bob = ring.find(b"another-key-of-length")
    assert bob is not None and (bob.name, bob.concurrent, bob.admin) == ("bob", 2, False)
    assert ring.find(b"") is None and ring.find(SECRET.encode() + b"x") is None


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({}, "holds no keys"),
        ([], "holds no keys"),
        (["x"], "entry 1 must be a mapping"),
        ([{"name": "a", "key": SECRET, "limit": 3}], "must be a mapping with fields"),
        ([{"key": SECRET}], "needs a name"),
        ([{"name": "a b", "key": SECRET}], "needs a name"),
        ([{"name": "a"}], "needs either"),
        ([{"name": "a", "key": SECRET, "sha256": "0" * 64}], "needs either"),
        ([{"name": "a", "key": "short"}], "at least 16"),
        ([{"name": "a", "sha256": "XY"}], "64 hexadecimal"),
        ([{"name": "a", "key": SECRET, "concurrent": 0}], "concurrent must be a whole number"),
        ([{"name": "a", "key": SECRET, "concurrent": True}], "concurrent must be a whole number"),
        ([{"name": "a", "key": SECRET, "admin": "yes"}], "admin must be true or false"),
        ([{"name": "a", "key": SECRET}, {"name": "b", "key": SECRET}], "the same key"),
        ([{"name": "a", "key": SECRET}, {"name": "a", "key": SECRET + "x"}], "the same name"),
    ],
)
def test_what_a_file_may_not_hold(tmp_path: Path, entries: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_keys(written(tmp_path / "keys.yaml", entries))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("- {name: [")
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "bad.yaml")
    (tmp_path / "tag.yaml").write_text("- !!python/object/apply:os.system ['true']")
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "tag.yaml")


class Answer:
    """As much of a generation as is counted."""

    def __init__(self, prompt: int, answer: int) -> None:
        self.num_prompt_tokens, self.num_answer_tokens = prompt, answer


def limits_of(clock: Callable[[], float], **limits: Any) -> tuple[KeyLimits, ApiKey]:
    key = ApiKey("alice", b"", **limits)
    return KeyLimits(KeyRing([key]), clock), key


def finished(limits: KeyLimits, key: ApiKey, prompt: int = 0, answer: int = 0) -> None:
    record = RequestRecord("r", key)
    record.generations.append(Answer(prompt, answer))  # type: ignore[arg-type]
    limits.leave(record)


def test_requests_per_minute_come_back_one_by_one() -> None:
    clock = Clock()
    limits, key = limits_of(clock, requests_per_minute=3)
    for _ in range(3):
        limits.enter(key)
        finished(limits, key)
    with pytest.raises(ApiError, match="3 requests per minute") as refused:
        limits.enter(key)
    assert refused.value.status == 429 and refused.value.headers == {"Retry-After": "20"}
    clock.now += 20
    limits.enter(key)
    with pytest.raises(ApiError):
        limits.enter(key)
    assert limits.uses["alice"].counts["refused"] == 2


def test_tokens_are_counted_when_they_are_known() -> None:
    clock = Clock()
    limits, key = limits_of(clock, tokens_per_minute=60)
    limits.enter(key)
    finished(limits, key, prompt=70, answer=20)
    with pytest.raises(ApiError, match="60 tokens per minute") as refused:
        limits.enter(key)
    assert refused.value.headers == {"Retry-After": "31"}
    clock.now += 31
    limits.enter(key)
    counts = limits.uses["alice"].counts
    assert (counts["prompt_tokens"], counts["answer_tokens"], counts["requests"]) == (70, 20, 2)


def test_requests_at_once() -> None:
    limits, key = limits_of(Clock(), concurrent=2)
    limits.enter(key)
    limits.enter(key)
    with pytest.raises(ApiError, match="2 requests at once"):
        limits.enter(key)
    finished(limits, key)
    limits.enter(key)
    assert limits.uses["alice"].running == 2


def test_choices_of_one_prompt_count_it_once() -> None:
    record = RequestRecord("r")
    record.choices = 2
    record.generations += [Answer(5, 1), Answer(5, 2), Answer(7, 3), Answer(7, 4)]  # type: ignore[list-item]
    assert (record.prompt_tokens, record.answer_tokens) == (12, 10)


def test_many_wrong_keys_make_an_address_wait_and_are_forgotten() -> None:
    clock = Clock()
    guesses = Guesses(clock)
    for _ in range(FREE_GUESSES):
        assert guesses.seconds_to_wait("1.2.3.4") == 0
        guesses.wrong("1.2.3.4")
    assert guesses.seconds_to_wait("1.2.3.4") == pytest.approx(FORGET_SECONDS)
    assert guesses.seconds_to_wait("5.6.7.8") == 0
    clock.now += FORGET_SECONDS + 0.1
    assert guesses.seconds_to_wait("1.2.3.4") == 0


def test_many_addresses_do_not_fill_memory() -> None:
    guesses = Guesses(Clock())
    for number in range(MAX_ADDRESSES + 100):
        guesses.wrong(str(number))
    assert len(guesses._wrong) == MAX_ADDRESSES
