"""The engine on its own thread."""

from queue import Queue

from runtime.engine.engine import Engine
from runtime.engine.request import Request, SamplingParams, TokenEvent
from runtime.engine.thread import EngineThread
from tests.runtime.engine.fake_executor import FakeExecutor, greedy_answer


def test_an_answer_arrives_through_the_listener() -> None:
    executor = FakeExecutor()
    thread = EngineThread(Engine(executor, check=True))
    events: Queue[TokenEvent] = Queue()
    request = Request("a", (1, 2, 3), 5, SamplingParams(temperature=0))
    thread.submit(request, events.put)
    answer = [events.get(timeout=10) for _ in range(5)]
    assert [event.token_id for event in answer] == greedy_answer(request, executor)
    assert answer[-1].finish_reason == "length"
    assert thread.shutdown(5)
