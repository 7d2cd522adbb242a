"""Steps keep to their time, on a machine whose time is counted."""

import numpy as np
import numpy.typing as npt
import pytest

from runtime.engine.batch import StepBatch
from runtime.engine.budget import LEAST_PROMPT_TOKENS, StepBudget
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, SamplingParams

GREEDY = SamplingParams(temperature=0)


class Machine:
    """A step costs `fixed` seconds, `each` for each token, and nothing else takes time."""

    vocab_size = 8
    max_positions = 100_000
    page_size = 16
    num_pages = 4000

    def __init__(self, fixed: float, each: float) -> None:
        self.fixed, self.each, self.now = fixed, each, 0.0
        self.steps: list[int] = []

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        self.now += self.fixed + self.each * len(batch.token_ids)
        self.steps.append(len(batch.token_ids))
        return np.zeros((len(batch.logit_rows), self.vocab_size), np.float32)

    def close(self) -> None: ...

    def clock(self) -> float:
        return self.now


def prompt(name: str, length: int, max_tokens: int = 1) -> Request:
    return Request(name, (sum(map(ord, name)) % 7, *[1] * (length - 1)), max_tokens, GREEDY)


@pytest.mark.parametrize(("fixed", "each"), [(0.01, 0.001), (0.05, 0.004), (0.001, 0.0001)])
def test_a_long_prompt_delays_answers_by_one_step_of_the_target(fixed: float, each: float) -> None:
    """64 KiB of prompt beside others' streams."""
    machine = Machine(fixed, each)
    options = EngineOptions(target_step_seconds=0.25)
    engine = Engine(machine, options, clock=machine.clock)
    for index in range(4):
        engine.add(prompt(f"talker {index}", 40, 500))
    for _ in range(3):
        engine.step()
    engine.add(prompt("long", 16_384))
    last = dict.fromkeys([f"talker {i}" for i in range(4)], machine.now)
    gaps, steps = [], 0
    while "long" in engine._sequences:
        for event in engine.step():
            if event.request_id in last:
                gaps.append(machine.now - last[event.request_id])
                last[event.request_id] = machine.now
        steps += 1
    assert len(gaps) == 4 * steps, "an answer missed a step"
    # What four answers cost is known from steps in which there may have been fewer.
    longest = max(0.25, fixed + each * (4 + LEAST_PROMPT_TOKENS)) + 4 * each
    assert max(gaps) <= longest * 1.001
    # And the steps are used: no more of them than the target, or the limit of a step, demands.
    fitting = min(256 - 4, max(LEAST_PROMPT_TOKENS, int((0.25 - fixed - 4 * each) / each)))
    assert steps <= 16_384 / fitting * 1.05 + 10


def test_without_answers_a_prompt_has_the_whole_step() -> None:
    machine = Machine(0.5, 0.1)
    engine = Engine(machine, EngineOptions(target_step_seconds=0.1), clock=machine.clock)
    engine.add(prompt("a", 600))
    while engine.has_work:
        engine.step()
    assert machine.steps == [256, 256, 88]


def test_without_a_target_steps_are_full() -> None:
    machine = Machine(0.5, 0.1)
    engine = Engine(machine, EngineOptions(target_step_seconds=None), clock=machine.clock)
    engine.add(prompt("talker", 3, 9))
    engine.step()
    engine.add(prompt("a", 600))
    engine.step()
    assert machine.steps == [3, 256]


def test_a_short_prompt_passes_one_that_is_far_from_its_end() -> None:
    machine = Machine(0.0, 0.001)
    engine = Engine(machine, EngineOptions(target_step_seconds=None, prefix_cache=False))
    engine.add(prompt("long", 10_000))
    engine.step()
    engine.add(prompt("short", 100))
    engine.add(prompt("also long", 9_000))
    names = [event.request_id for _ in range(3) for event in engine.step()]
    assert names == ["short"]
    # The long one goes on meanwhile, with all that the short one leaves.
    assert machine.steps[1] == 256 and machine.steps[2] == 256
    assert engine._sequences["long"].num_computed_tokens == 4 * 256 - 100


def test_a_single_slow_step_is_soon_forgotten() -> None:
    budget = StepBudget(256, 0.25)
    for _ in range(5):
        budget.note(0, 0.01)
        budget.note(100, 0.11)
    usual = budget.tokens(1)
    budget.note(100, 10.0)
    assert budget.tokens(1) == LEAST_PROMPT_TOKENS + 1 < usual
    for _ in range(25):
        budget.note(100, 0.11)
    assert usual - 20 <= budget.tokens(1) <= usual
