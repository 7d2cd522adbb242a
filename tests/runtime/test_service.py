import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.request import FinishReason, Request, RequestError, SamplingParams, TokenEvent
from runtime.engine.stats import EngineStats
from runtime.engine.thread import EngineThread
from runtime.generation import Generation, GenerationParams
from runtime.service import GenerationService, usable_positions
from tests.runtime.server.harness import ScriptedExecutor, make_service, tiny_tokenizer

Service = tuple[GenerationService, ScriptedExecutor, EngineThread]


class FakeEngine:
    """Keeps requests; a test plays the engine's part by hand."""

    is_alive = is_ready = True

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.listeners: list[Callable[[TokenEvent], None]] = []
        self.aborted: list[str] = []

    def submit(self, request: Request, on_event: Callable[[TokenEvent], None]) -> None:
        self.requests.append(request)
        self.listeners.append(on_event)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def stats(self) -> EngineStats:
        return EngineStats()

    def seconds_without_progress(self) -> float:
        return 0.0

    def shutdown(self, drain_seconds: float = 30.0) -> bool:
        return True

    def say(self, token_id: int | None, reason: FinishReason | None = None) -> None:
        self.listeners[-1](TokenEvent(self.requests[-1].request_id, token_id, reason))


@pytest.fixture(scope="module")
def scripted() -> Iterator[Service]:
    executor = ScriptedExecutor()
    service, _, thread = make_service(executor)
    yield service, executor, thread
    assert thread.shutdown(1)


def fake() -> tuple[GenerationService, FakeEngine]:
    engine = FakeEngine()
    return GenerationService(engine, tiny_tokenizer(), None, "tiny", 64), engine


def text_of(generation: Generation) -> str:
    return "".join(delta.text for delta in generation)


def test_an_answer_is_the_text_of_its_tokens(scripted: Service) -> None:
    service, executor, _ = scripted
    prompt = service.encode("The press")
    generation = service.submit(prompt, GenerationParams(max_tokens=40))
    expected = executor.answer(len(prompt), 40)
    deltas = list(generation)
    assert [delta.token_id for delta in deltas] == expected
    assert "".join(delta.text for delta in deltas) == tiny_tokenizer().decode(expected)
    assert [delta.finish_reason for delta in deltas] == [None] * 39 + ["length"]
    assert (generation.num_prompt_tokens, generation.num_answer_tokens) == (len(prompt), 40)


@given(cut=st.integers(0, 60), size=st.integers(1, 8))
def test_a_stop_string_ends_the_answer_before_it(scripted: Service, cut: int, size: int) -> None:
    service, executor, _ = scripted
    whole = tiny_tokenizer().decode(executor.answer(3, 120))
    stop = whole[cut : cut + size]
    params = GenerationParams(max_tokens=120, stop=("never seen", stop))
    generation = service.submit([5, 6, 7], params)
    assert text_of(generation) == whole[: whole.index(stop)]
    assert generation.finish_reason == "stop"


def test_a_stop_string_frees_the_engine() -> None:
    service, engine = fake()
    a, b = tiny_tokenizer().encode("a")[0], tiny_tokenizer().encode("b")[0]
    generation = service.submit([5], GenerationParams(stop=("bb",)))
    engine.say(a)
    engine.say(b)
    engine.say(b)
    engine.say(a)
    deltas = generation.poll()
    assert [delta.text for delta in deltas] == ["a", "", ""]
    assert deltas[-1].finish_reason == "stop"
    assert engine.aborted == [generation.request_id]
    assert generation.poll() == []


def test_what_was_held_for_a_stop_string_comes_with_the_end() -> None:
    service, engine = fake()
    generation = service.submit([5], GenerationParams(stop=("bb",)))
    engine.say(tiny_tokenizer().encode("b")[0], "length")
    assert [(d.text, d.finish_reason) for d in generation] == [("b", "length")]


def test_the_ending_token_is_counted_but_has_no_text() -> None:
    service, engine = fake()
    letter = tiny_tokenizer().encode("a")[0]
    generation = service.submit([5], GenerationParams(stop_token_ids=frozenset({letter})))
    assert engine.requests[0].stop_token_ids == {2, letter}
    engine.say(letter, "stop")
    (delta,) = generation.poll()
    assert (delta.text, delta.token_id, delta.finish_reason) == ("", None, "stop")
    assert generation.num_answer_tokens == 1


def test_what_ended_the_answer_is_text_where_that_is_asked_for() -> None:
    letter, end = tiny_tokenizer().encode("a")[0], 2
    for ending, text in ((letter, "a"), (end, "<|im_end|>")):
        service, engine = fake()
        params = GenerationParams(
            stop_token_ids=frozenset({letter}), include_stop=True, skip_special_tokens=False
        )
        generation = service.submit([5], params)
        engine.say(ending, "stop")
        (delta,) = generation.poll()
        assert (delta.text, delta.token_id, delta.ending_id) == (text, None, ending)
    service, engine = fake()
    generation = service.submit([5], GenerationParams(stop=("aa",), include_stop=True))
    engine.say(letter)
    engine.say(letter)
    assert [delta.text for delta in generation.poll()] == ["", "aa"]


def test_ignore_eos_leaves_only_the_tokens_that_were_asked_for() -> None:
    service, engine = fake()
    service.submit([5], GenerationParams(ignore_eos=True, stop_token_ids=frozenset({9})))
    assert engine.requests[0].stop_token_ids == {9}


def test_stop_strings_wait_for_min_tokens(scripted: Service) -> None:
    service, executor, _ = scripted
    tokens = executor.answer(1, 200)
    stop = tiny_tokenizer().decode(tokens[1:2])
    generation = service.submit([5], GenerationParams(stop=(stop,), min_tokens=10))
    late = tiny_tokenizer().decode(tokens)
    early = tiny_tokenizer().decode(tokens[:9])
    assert text_of(generation) == early + late[len(early) :].partition(stop)[0]


def test_a_character_cut_by_the_end_is_replaced(scripted: Service) -> None:
    service, executor, _ = scripted
    first = tiny_tokenizer().encode("🙂")[0]
    prompt = [5] * (executor.script.index(first) + 1)
    assert text_of(service.submit(prompt, GenerationParams(max_tokens=1))) == "\ufffd"


def test_max_tokens_defaults_to_what_the_context_leaves() -> None:
    service, engine = fake()
    service.submit([5] * 60, GenerationParams())
    assert engine.requests[0].max_tokens == 4


@pytest.mark.parametrize(
    ("length", "max_tokens", "param"),
    [(64, None, "prompt"), (65, 1, "prompt"), (60, 5, "max_tokens")],
)
def test_what_does_not_fit_is_refused_with_both_numbers(
    length: int, max_tokens: int | None, param: str
) -> None:
    service, engine = fake()
    with pytest.raises(RequestError, match=rf"{length} tokens.* 64 tokens") as caught:
        service.submit([5] * length, GenerationParams(max_tokens=max_tokens))
    assert (caught.value.param, caught.value.code) == (param, "context_length_exceeded")
    assert not engine.requests


def test_text_that_cannot_fit_is_not_even_encoded() -> None:
    service, _ = fake()
    with pytest.raises(RequestError, match=r"at least \d+ tokens.*64 tokens"):
        service.encode("word " * 1_000_000)


def test_the_end_of_a_text_is_kept_where_that_is_asked_for() -> None:
    service, _ = fake()
    words = "word " * 1000
    assert service.encode(words, keep_last=5) == tiny_tokenizer().encode(words)[-5:]


def test_without_a_template_there_is_no_chat() -> None:
    with pytest.raises(RequestError, match="has no chat template"):
        fake()[0].encode_chat([{"role": "user", "content": "Hi"}])


def test_cancelling_ends_the_iteration(scripted: Service) -> None:
    service, executor, _ = scripted
    gate = threading.Event()
    executor.hold = partial(gate.wait, 5)
    generation = service.submit([5], GenerationParams())
    generation.cancel()
    gate.set()
    executor.hold = lambda: None
    assert list(generation)[-1].finish_reason == "abort"
    generation.cancel()


def test_news_that_came_before_anyone_listened_is_told() -> None:
    service, engine = fake()
    generation = service.submit([5], GenerationParams())
    engine.say(7)
    told: list[int] = []
    generation.on_news(lambda: told.append(len(told)))
    assert told == [0]
    engine.say(8, "length")
    assert told == [0, 1]
    assert len(generation.poll()) == 2


def test_an_error_of_the_engine_is_the_last_delta(scripted: Service) -> None:
    service, executor, _ = scripted

    def fail() -> None:
        raise RuntimeError("out of luck")

    executor.hold = fail
    (delta,) = service.submit([5], GenerationParams())
    executor.hold = lambda: None
    assert delta.finish_reason == "error"
    assert delta.error is not None and "out of luck" in delta.error


def test_sampling_goes_to_the_engine_as_it_is() -> None:
    service, engine = fake()
    sampling = replace(SamplingParams(), temperature=0.5, seed=3)
    service.submit([5], GenerationParams(sampling=sampling, max_tokens=2, min_tokens=1))
    request = engine.requests[0]
    assert (request.sampling, request.max_tokens, request.min_tokens) == (sampling, 2, 1)


def test_the_page_pool_bounds_the_context_too() -> None:
    assert usable_positions(ScriptedExecutor(num_pages=5, page_size=8)) == 32
    assert usable_positions(ScriptedExecutor(max_positions=20)) == 20
