"""The step loop from outside: text, ends, refusals, roll-back."""

from runtime.engine.engine import Engine
from runtime.engine.request import Request, SamplingParams
from tests.runtime.engine.fake_executor import FakeExecutor, greedy_answer, run_to_end

GREEDY = SamplingParams(temperature=0)


def test_greedy_text_is_the_oracles() -> None:
    executor = FakeExecutor()
    engine = Engine(executor, check=True)
    requests = [Request(f"r{i}", tuple(range(1, 2 + i)), 9, GREEDY) for i in range(5)]
    for request in requests:
        engine.add(request)
    transcript = run_to_end(engine)
    for request in requests:
        assert transcript.tokens[request.request_id] == greedy_answer(request, executor)
        assert transcript.ends[request.request_id].finish_reason == "length"
    assert engine.pages_in_use == 0
