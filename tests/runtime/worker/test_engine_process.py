"""The engine behind a process boundary: answers, refusals, and what becomes of a worker's death."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

import pytest

from quant.format.errors import ColdpressError, FileFormatError
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, RequestError, SamplingParams, TokenEvent
from runtime.worker.engine_process import EngineProcess
from runtime.worker.failures import WorkerDied
from runtime.worker.spec import ModelSpec
from tests.runtime.engine.fake_executor import FakeExecutor, greedy_answer
from tests.runtime.worker.fake_worker import KILL, RAISE, STOP, command
from tests.waiting import eventually

GREEDY = SamplingParams(temperature=0)
WAIT = 60.0


class Answer:
    """A listener that collects; `end` waits for the last event."""

    def __init__(self) -> None:
        self.events: list[TokenEvent] = []
        self._ends: Queue[TokenEvent] = Queue()
        self._first: Queue[TokenEvent] = Queue()

    def __call__(self, event: TokenEvent) -> None:
        self.events.append(event)
        self._first.put(event)
        if event.finish_reason is not None:
            self._ends.put(event)

    def end(self) -> TokenEvent:
        return self._ends.get(timeout=WAIT)

    def first(self) -> TokenEvent:
        return self._first.get(timeout=WAIT)

    @property
    def tokens(self) -> list[int]:
        return [event.token_id for event in self.events if event.token_id is not None]


def spec(
    name: str = "m", path: Path = Path("nowhere"), *, max_running: int = 16, max_waiting: int = 64
) -> ModelSpec:
    options = EngineOptions(max_running=max_running, max_waiting=max_waiting)
    return ModelSpec(path, name, engine=options)


@contextmanager
def started(model: ModelSpec, stall_seconds: float = 60) -> Iterator[EngineProcess]:
    engine = EngineProcess(model, command=command(), stall_seconds=stall_seconds)
    try:
        engine.wait_ready(WAIT)
        yield engine
    finally:
        assert engine.shutdown(0)
        assert not engine.is_alive and not process_exists(engine.worker_pid)


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineProcess]:
    """For tests that leave the worker alive."""
    with started(spec()) as one:
        yield one


def process_exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def request_for(name: str, *prompt: int, max_tokens: int = 5) -> Request:
    return Request(name, prompt or (1, 2, 3), max_tokens, GREEDY)


def ask(engine: EngineProcess, request: Request) -> Answer:
    answer = Answer()
    engine.submit(request, answer)
    return answer


def oracle(request: Request) -> list[int]:
    return greedy_answer(request, FakeExecutor())


def test_the_sizes_are_known_before_anything_is_asked() -> None:
    with started(spec("fresh", max_running=3)) as engine:
        eventually(lambda: engine.stats().pages_total > 0)
        assert engine.stats().max_running == 3 and engine.stats().requests == 0


def test_answers_are_those_of_the_engine(engine: EngineProcess) -> None:
    requests = [request_for(str(index), *range(1, 3 + index)) for index in range(4)]
    answers = [ask(engine, request) for request in requests]
    for request, answer in zip(requests, answers, strict=True):
        assert answer.end().finish_reason == "length"
        assert answer.tokens == oracle(request)
        assert {event.request_id for event in answer.events} == {request.request_id}
    stats = engine.stats()
    assert stats.generated_tokens >= 20 and stats.num_running == stats.num_waiting == 0
    assert stats.requests == sum(stats.finished.values())


def test_everything_a_request_holds_crosses_over(engine: EngineProcess) -> None:
    sampling = SamplingParams(logit_bias={7: 100.0}, seed=2**62, logprobs=2)
    request = Request("full", (1, 2), 3, sampling, frozenset({7}), 2)
    answer = ask(engine, request)
    assert answer.end().finish_reason == "stop"
    assert 7 not in answer.tokens[:-1] and len(answer.tokens) >= 2 and answer.tokens[-1] == 7
    logprobs = answer.events[0].logprobs
    assert logprobs is not None and len(logprobs.top) == 2


def test_refusals_reach_the_caller(engine: EngineProcess) -> None:
    for request, code in (
        (Request("x", (), 5), "empty_prompt"),
        (request_for("x", max_tokens=1000), "context_length_exceeded"),
        (request_for("x", 23), "invalid_token"),
    ):
        with pytest.raises(RequestError) as refusal:
            ask(engine, request)
        assert refusal.value.code == code


def test_a_step_that_fails_ends_its_request_alone(engine: EngineProcess) -> None:
    end = ask(engine, request_for("bad", RAISE)).end()
    assert end.finish_reason == "error" and "plates are jammed" in str(end.error)
    assert ask(engine, request_for("good")).end().finish_reason == "length"


def test_a_listener_that_raises_loses_only_its_own(engine: EngineProcess) -> None:
    heard = []

    def broken(event: TokenEvent) -> None:
        heard.append(event)
        raise BrokenPipeError("client gone")

    engine.submit(request_for("broken", max_tokens=90), broken)
    assert ask(engine, request_for("sound")).end().finish_reason == "length"
    eventually(lambda: engine.stats().num_running == 0)
    assert len(heard) == 1


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("broken", FileFormatError, "model: is broken"),
        ("missing", FileNotFoundError, "No such file"),
        ("bug", WorkerDied, "ZeroDivisionError: division by zero"),
        ("killed", WorkerDied, "SIGKILL.*memory"),
        ("bus", FileFormatError, "model: was cut short"),
    ],
)
def test_what_loading_raises_is_raised_here(
    name: str, kind: type[Exception], words: str, tmp_path: Path
) -> None:
    """A13 among others: a file that shrinks while it is mapped."""
    engine = EngineProcess(spec(name, tmp_path / "model"), command=command())
    with pytest.raises(kind, match=words) as failure:
        engine.wait_ready(WAIT)
    assert isinstance(failure.value, ColdpressError | OSError)
    assert "\n" not in str(failure.value)
    eventually(lambda: not engine.is_alive)
    assert not process_exists(engine.worker_pid)
    with pytest.raises(RequestError, match="not loaded"):
        ask(engine, request_for("x"))


def test_a_full_queue_and_a_name_in_use_are_refused() -> None:
    with started(spec("slow", max_running=1, max_waiting=1)) as engine:
        running = ask(engine, request_for("0", max_tokens=50))
        running.first()
        waiting = ask(engine, request_for("1"))
        for name, code in (("2", "queue_full"), ("1", "duplicate_request_id")):
            with pytest.raises(RequestError) as refusal:
                ask(engine, request_for(name))
            assert refusal.value.code == code
        assert (engine.stats().num_running, engine.stats().num_waiting) == (1, 1)
        for name in ("0", "1", "unknown"):
            engine.abort(name)
        assert running.end().finish_reason == waiting.end().finish_reason == "abort"
        assert len(running.tokens) < 50


def test_where_memory_runs_out_the_worker_goes_and_not_its_front() -> None:
    """A12: a limit that is lowered below what is in use already. The next worker is another A11."""
    with started(spec()) as engine:

        def score(pid: int) -> int:
            return int(Path(f"/proc/{pid}/oom_score").read_text())

        assert score(engine.worker_pid) > score(os.getpid())


def test_killed_worker_in_flight_is_told_and_the_rest_runs_again() -> None:
    """A11: kill -9."""
    with started(spec("slow", max_running=2, max_waiting=10)) as engine:
        streamed = ask(engine, request_for("streamed", max_tokens=100))
        streamed.first()
        waiting = [ask(engine, request_for(f"waiting{i}", 1 + i)) for i in range(5)]
        before = engine.stats()
        first_pid = engine.worker_pid
        os.kill(first_pid, signal.SIGKILL)
        end = streamed.end()
        assert end.finish_reason == "error" and "ended before" in str(end.error)
        for index, answer in enumerate(waiting):
            assert answer.end().finish_reason == "length"
            # Whatever it had said before its worker died it did not say twice.
            assert answer.tokens == oracle(request_for("", 1 + index))
        assert engine.is_ready and engine.worker_pid != first_pid
        after = engine.stats()
        assert after.steps > before.steps and after.requests == 6
        assert sum(after.finished.values()) == 6 and after.finished["error"] == 1
        assert (before.worker_restarts, after.worker_restarts) == (0, 1)


def test_a_request_that_kills_workers_is_quarantined_and_others_are_answered() -> None:
    """A11: the same request crashes the worker again and again."""
    with started(spec("slow", max_running=8)) as engine:
        first = ask(engine, request_for("busy", max_tokens=30))
        first.first()
        poison = ask(engine, request_for("poison", KILL))
        innocent = [ask(engine, request_for(f"i{index}", 1 + index)) for index in range(4)]
        end = poison.end()
        assert end.finish_reason == "error" and "more than once" in str(end.error)
        assert poison.tokens == []
        for index, answer in enumerate(innocent):
            assert answer.end().finish_reason == "length"
            assert answer.tokens == oracle(request_for("", 1 + index))
        with pytest.raises(RequestError) as refusal:
            ask(engine, request_for("again", KILL))
        assert refusal.value.code == "quarantined"
        assert ask(engine, request_for("other", KILL + 1 - 2)).end().finish_reason == "length"


def test_a_worker_that_hangs_is_noticed_and_replaced() -> None:
    """A11: SIGSTOP, from a step of its own."""
    with started(spec(), stall_seconds=0.5) as engine:
        assert engine.seconds_without_progress() == 0, "an idle engine is not stuck"
        first_pid = engine.worker_pid
        poison = ask(engine, request_for("stop", STOP))
        eventually(lambda: engine.seconds_without_progress() > 0.2)
        assert poison.end().finish_reason == "error"
        assert engine.worker_pid != first_pid and not process_exists(first_pid)
        eventually(lambda: engine.is_ready)
        assert ask(engine, request_for("a")).end().finish_reason == "length"
        assert engine.seconds_without_progress() == 0


def test_a_model_that_cannot_be_loaded_again_ends_what_waits(tmp_path: Path) -> None:
    with started(spec("once", tmp_path / "mark")) as engine:
        answer = ask(engine, request_for("stop", STOP))
        os.kill(engine.worker_pid, signal.SIGKILL)
        assert answer.end().finish_reason == "error"
        eventually(lambda: not engine.is_ready)
        with pytest.raises(RequestError) as refusal:
            ask(engine, request_for("x"))
        assert refusal.value.code == "model_unavailable" and engine.is_alive
        assert engine.seconds_without_progress() > 0
        (tmp_path / "mark").unlink()
        eventually(lambda: engine.is_ready)
        assert ask(engine, request_for("x")).end().finish_reason == "length"


def test_shutdown_lets_answers_finish_then_tells_the_rest() -> None:
    with started(spec("slow", max_running=1)) as engine:
        short = ask(engine, request_for("short"))
        assert engine.shutdown(WAIT) and short.end().finish_reason == "length"
        with pytest.raises(RequestError) as refusal:
            ask(engine, request_for("late"))
        assert refusal.value.code == "shutting_down" and not engine.is_ready
    with started(spec("slow", max_running=1)) as engine:
        long = [ask(engine, request_for(str(i), max_tokens=150)) for i in range(3)]
        assert engine.shutdown(0.05)
        assert all("server stopped" in str(one.end().error) for one in long)


def test_a_worker_ends_with_its_front() -> None:
    """The front is killed, and can tell nobody."""
    root = str(Path(__file__).parents[3])
    program = f"""
        import os, signal, sys
        sys.path.insert(0, {root!r})
        from pathlib import Path
        from runtime.worker.engine_process import EngineProcess
        from runtime.worker.spec import ModelSpec
        from tests.runtime.worker.fake_worker import command
        engine = EngineProcess(ModelSpec(Path("nowhere"), "m"), command=command())
        print(engine.wait_ready(20).pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    front = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, check=False
    )
    assert front.returncode == -signal.SIGKILL
    eventually(lambda: not process_exists(int(front.stdout)))


def test_signals_to_the_group_leave_the_worker_alone(engine: EngineProcess) -> None:
    pid = engine.worker_pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    assert ask(engine, request_for("a")).end().finish_reason == "length"
    assert engine.worker_pid == pid
