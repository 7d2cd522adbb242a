"""The engine on its own thread: listeners, limits, failures, shutdown, liveness."""

import threading
from collections.abc import Callable, Iterator
from queue import Queue
from random import Random

import pytest

from runtime.engine.batch import StepBatch
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, RequestError, SamplingParams, TokenEvent
from runtime.engine.thread import EngineThread
from tests.runtime.engine.fake_executor import FakeExecutor, greedy_answer

GREEDY = SamplingParams(temperature=0)
WAIT = 20.0
Listener = Callable[[TokenEvent], None]


class Gate:
    """Holds steps back until it is opened; `entered` says that one is waiting."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, batch: StepBatch) -> None:
        self.entered.set()
        assert self.open.wait(WAIT)


class Answer:
    """A listener that collects; `end` waits for the last event."""

    def __init__(self) -> None:
        self.events: list[TokenEvent] = []
        self._ends: Queue[TokenEvent] = Queue()

    def __call__(self, event: TokenEvent) -> None:
        self.events.append(event)
        if event.finish_reason is not None:
            self._ends.put(event)

    def end(self) -> TokenEvent:
        return self._ends.get(timeout=WAIT)

    @property
    def tokens(self) -> list[int]:
        return [event.token_id for event in self.events if event.token_id is not None]


@pytest.fixture
def executor() -> FakeExecutor:
    return FakeExecutor()


@pytest.fixture
def thread(executor: FakeExecutor) -> Iterator[EngineThread]:
    thread = EngineThread(Engine(executor, EngineOptions(max_running=2, max_waiting=2), check=True))
    yield thread
    assert thread.shutdown(0)


def request_for(name: str, length: int = 3, max_tokens: int = 5) -> Request:
    return Request(name, tuple(range(1, 1 + length)), max_tokens, GREEDY)


def ask(thread: EngineThread, request: Request) -> Answer:
    answer = Answer()
    thread.submit(request, answer)
    return answer


def test_an_answer_arrives_through_the_listener(
    thread: EngineThread, executor: FakeExecutor
) -> None:
    for name in ("a", "b", "a"):
        answer = ask(thread, request_for(name))
        assert answer.end().finish_reason == "length"
        assert answer.tokens == greedy_answer(request_for(name), executor)


def test_refusals_reach_the_caller_of_submit(thread: EngineThread, executor: FakeExecutor) -> None:
    executor.before_step = gate = Gate()
    answers = [ask(thread, request_for("0"))]
    assert gate.entered.wait(WAIT)
    answers += [ask(thread, request_for(str(index))) for index in (1, 2)]
    for request, code in (
        (request_for("x", length=0), "empty_prompt"),
        (request_for("x", max_tokens=1000), "context_length_exceeded"),
        (request_for("1"), "duplicate_request_id"),
        (request_for("x"), "queue_full"),
    ):
        with pytest.raises(RequestError) as refusal:
            ask(thread, request)
        assert refusal.value.code == code
    assert thread.stats().num_waiting == 2
    gate.open.set()
    assert [answer.end().finish_reason for answer in answers] == ["length"] * 3


def test_abort_before_during_and_after(thread: EngineThread, executor: FakeExecutor) -> None:
    executor.before_step = gate = Gate()
    running = ask(thread, request_for("running", max_tokens=90))
    assert gate.entered.wait(WAIT)
    queued = ask(thread, request_for("queued"))
    for name in ("running", "queued", "unknown", "running"):
        thread.abort(name)
    gate.open.set()
    assert running.end().finish_reason == queued.end().finish_reason == "abort"
    assert len(running.tokens) == 1 and queued.tokens == []
    after = ask(thread, request_for("queued"))
    after.end()
    thread.abort("queued")
    assert after.tokens == greedy_answer(request_for("queued"), executor)
    assert len([event for event in after.events if event.finish_reason]) == 1


def test_a_failing_step_ends_its_requests_and_no_others(
    thread: EngineThread, executor: FakeExecutor
) -> None:
    gate = Gate()

    def fail_once(batch: StepBatch) -> None:
        executor.before_step = lambda batch: None
        gate(batch)
        raise OSError("no memory")

    executor.before_step = fail_once
    poison = ask(thread, request_for("poison"))
    assert gate.entered.wait(WAIT)
    bystander = ask(thread, request_for("bystander"))
    gate.open.set()
    end = poison.end()
    assert end.finish_reason == "error" and "no memory" in str(end.error)
    assert bystander.end().finish_reason == "length"
    assert bystander.tokens == greedy_answer(request_for("bystander"), executor)
    assert thread.stats().failed_steps == 1


def test_after_a_bug_of_ours_everyone_is_told_and_the_next_is_served(
    executor: FakeExecutor,
) -> None:
    engine = Engine(executor)
    thread = EngineThread(engine)
    executor.before_step = gate = Gate()
    answers = [ask(thread, request_for(name, max_tokens=90)) for name in "ab"]
    assert gate.entered.wait(WAIT)
    engine._scheduler.pool._references = [0] * executor.num_pages
    thread.abort("a")
    gate.open.set()
    for answer in answers:
        end = answer.end()
        assert end.finish_reason == "error" and "freed twice" in str(end.error)
    again = ask(thread, request_for("a"))
    again.end()
    assert again.tokens == greedy_answer(request_for("a"), executor)
    engine.check_integrity()
    assert thread.shutdown(WAIT)


def test_a_listener_that_raises_loses_only_its_own(
    thread: EngineThread, executor: FakeExecutor
) -> None:
    heard = []

    def broken(event: TokenEvent) -> None:
        heard.append(event)
        raise BrokenPipeError("client gone")

    executor.before_step = gate = Gate()
    thread.submit(request_for("broken", max_tokens=90), broken)
    sound = ask(thread, request_for("sound"))
    gate.open.set()
    assert sound.end().finish_reason == "length"
    assert len(heard) == 1
    assert ask(thread, request_for("broken")).end().finish_reason == "length"


def test_a_listener_may_abort_and_submit(thread: EngineThread, executor: FakeExecutor) -> None:
    second = Answer()

    def listener(event: TokenEvent) -> None:
        if event.finish_reason is None:
            thread.abort("first")
        else:
            thread.submit(request_for("first"), second)

    thread.submit(request_for("first", max_tokens=90), listener)
    assert second.end().finish_reason == "length"
    assert second.tokens == greedy_answer(request_for("first"), executor)


def test_a_late_abort_does_not_meet_the_next_owner_of_the_id(
    thread: EngineThread, executor: FakeExecutor
) -> None:
    executor.before_step = gate = Gate()
    second = Answer()
    thread.submit(request_for("a", max_tokens=1), lambda _: thread.submit(request_for("a"), second))
    assert gate.entered.wait(WAIT)
    thread.abort("a")
    gate.open.set()
    assert second.end().finish_reason == "length"


def test_shutdown_lets_answers_finish(executor: FakeExecutor) -> None:
    thread = EngineThread(Engine(executor, check=True))
    answers = [ask(thread, request_for(str(index))) for index in range(20)]
    assert thread.shutdown(WAIT)
    assert {answer.end().finish_reason for answer in answers} == {"length"}
    with pytest.raises(RequestError) as refusal:
        ask(thread, request_for("late"))
    assert refusal.value.code == "shutting_down"
    assert thread.shutdown(0), "a second shutdown is harmless"


def test_shutdown_past_its_drain_time_tells_the_rest(executor: FakeExecutor) -> None:
    thread = EngineThread(Engine(executor, EngineOptions(max_running=1), check=True))
    executor.before_step = gate = Gate()
    answers = [ask(thread, request_for(str(index), max_tokens=90)) for index in range(3)]
    assert gate.entered.wait(WAIT)
    threading.Timer(0.2, gate.open.set).start()
    assert thread.shutdown(0.01)
    for answer in answers:
        end = answer.end()
        assert end.finish_reason == "error" and "stopped" in str(end.error)
    assert thread.stats().pages_in_use == 0


def test_liveness_is_time_without_progress(executor: FakeExecutor) -> None:
    now = [100.0]
    thread = EngineThread(Engine(executor), clock=lambda: now[0])
    assert thread.last_progress == 100 and thread.is_alive
    now[0] = 500.0
    assert thread.seconds_without_progress() == 0, "an idle engine is not stuck"
    executor.before_step = gate = Gate()
    answer = ask(thread, request_for("a"))
    assert gate.entered.wait(WAIT)
    now[0] = 530.0
    assert thread.seconds_without_progress() == 30
    gate.open.set()
    answer.end()
    assert thread.shutdown(WAIT)
    assert thread.last_progress == 530 and not thread.is_alive


def test_many_threads_submit_and_abort() -> None:
    """A pool far too small, four clients at once: each request ends once and speaks the truth."""
    executor = FakeExecutor(num_pages=14)
    thread = EngineThread(
        Engine(executor, EngineOptions(max_running=6, max_waiting=200), check=True)
    )
    answers: dict[str, tuple[Request, Answer]] = {}

    def client(number: int) -> None:
        random = Random(number)
        for index in range(25):
            name = f"{number}-{index}"
            request = request_for(name, random.randint(1, 20), random.randint(1, 15))
            answers[name] = request, ask(thread, request)
            if random.random() < 0.3:
                thread.abort(name if random.random() < 0.5 else f"{number}-{index // 2}")

    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for each in clients:
        each.start()
    for each in clients:
        each.join(WAIT)
    reasons = []
    for request, answer in answers.values():
        reasons.append(answer.end().finish_reason)
        expected = greedy_answer(request, executor)
        assert answer.tokens == (
            expected[: len(answer.tokens)] if reasons[-1] == "abort" else expected
        )
        assert [event.finish_reason is None for event in answer.events[:-1]].count(False) == 0
    assert thread.shutdown(WAIT)
    assert len(answers) == 100 and set(reasons) == {"length", "abort"}
    stats = thread.stats()
    assert stats.requests + reasons.count("abort") - stats.finished["abort"] == 100
    assert stats.pages_in_use == 0 and stats.num_running == stats.num_waiting == 0


def test_time_that_was_spent_on_the_way_counts(thread: EngineThread) -> None:
    answers = []
    for name, waited in (("late", 3600.0), ("early", 0.0)):
        answers.append(Answer())
        request = Request(name, (1, 2), 2, GREEDY, deadline_seconds=1800.0)
        thread.submit(request, answers[-1], waited)
    assert [answer.end().finish_reason for answer in answers] == ["timeout", "length"]
