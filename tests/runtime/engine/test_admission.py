"""Who is let in, and when: priorities, reserved answers, prefixes first."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.admission import MOST_OVERTAKEN
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, SamplingParams
from tests.runtime.engine.fake_executor import FakeExecutor, greedy_answer, run_to_end

GREEDY = SamplingParams(temperature=0)


def asking(name: str, prompt: tuple[int, ...], max_tokens: int, priority: int = 0) -> Request:
    return Request(name, prompt, max_tokens, GREEDY, priority=priority)


def test_the_smaller_priority_goes_first_and_equals_in_order_of_arrival() -> None:
    engine = Engine(FakeExecutor(), EngineOptions(max_running=1), check=True)
    for index, priority in enumerate((0, 5, -2, 0, 5, -2)):
        engine.add(asking(f"{priority}/{index}", (index,), 2, priority))
    assert list(run_to_end(engine).ends) == ["-2/2", "-2/5", "0/0", "0/3", "5/1", "5/4"]


def test_the_larger_priority_is_preempted_first() -> None:
    executor = FakeExecutor(num_pages=9)
    engine = Engine(executor, check=True)
    requests = [asking("late", (1,) * 9, 14, 5), asking("soon", (2,) * 9, 14, -1)]
    for request in requests:
        engine.add(request)
    transcript = run_to_end(engine)
    assert engine.stats.preemptions > 0 and list(transcript.ends) == ["soon", "late"]
    for request in requests:
        assert transcript.tokens[request.request_id] == greedy_answer(request, executor)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 14), st.integers(1, 14)), min_size=1, max_size=8),
    num_pages=st.integers(8, 20),
    step_tokens=st.integers(1, 30),
    shared=st.booleans(),
)
def test_reserved_answers_are_never_preempted(
    sizes: list[tuple[int, int]], num_pages: int, step_tokens: int, shared: bool
) -> None:
    executor = FakeExecutor(num_pages=num_pages)
    options = EngineOptions(reserve_answers=True, max_step_tokens=step_tokens)
    engine = Engine(executor, options, check=True)
    requests = [
        asking(str(i), (*range(prompt - 1), i if shared else 0), answer)
        for i, (prompt, answer) in enumerate(sizes)
    ]
    for request in requests:
        engine.add(request)
    transcript = run_to_end(engine)
    assert engine.stats.preemptions == 0
    for request in requests:
        assert transcript.tokens[request.request_id] == greedy_answer(request, executor)


def test_reserving_lets_in_what_fits_with_its_answer() -> None:
    for reserve, expected in ((True, 2), (False, 6)):
        engine = Engine(FakeExecutor(num_pages=12), EngineOptions(reserve_answers=reserve))
        for index in range(6):
            engine.add(asking(str(index), (index,) * 3, 13))
        engine.step()
        assert engine.num_running == expected


def test_what_shares_a_prefix_goes_first_but_not_forever() -> None:
    executor = FakeExecutor()
    options = EngineOptions(queue_order="prefix", max_running=1)
    engine = Engine(executor, options, check=True)
    engine.add(asking("opening", tuple(range(12)), 1))
    engine.step()
    engine.add(asking("stranger", (20, 21), 1))
    for index in range(MOST_OVERTAKEN + 4):
        engine.add(asking(str(index), (*range(12), index), 1))
    engine.add(asking("urgent", (9, 9), 1, -1))
    ends = list(run_to_end(engine).ends)
    assert ends[0] == "urgent"
    assert ends.index("stranger") == 1 + MOST_OVERTAKEN
    assert [name for name in ends if name.isdigit()] == list(map(str, range(MOST_OVERTAKEN + 4)))


@pytest.mark.parametrize("queue_order", ["arrival", "prefix"])
def test_order_does_not_change_text(queue_order: str) -> None:
    executor = FakeExecutor(num_pages=24)
    options = EngineOptions(queue_order=queue_order, max_running=3)  # type: ignore[arg-type]
    engine = Engine(executor, options, check=True)
    requests = [asking(str(i), (*range(4 * (i % 3)), i), 3 + i % 4) for i in range(20)]
    for request in requests:
        engine.add(request)
    transcript = run_to_end(engine)
    for request in requests:
        assert transcript.tokens[request.request_id] == greedy_answer(request, executor)
