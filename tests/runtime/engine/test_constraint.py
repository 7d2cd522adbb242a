"""Constrained requests over a grammar that is a plain list of sets of tokens."""

import threading
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from runtime.engine.constraint import Constraint, ConstraintError
from runtime.engine.engine import Engine
from runtime.engine.request import Request, RequestError, SamplingParams, TokenEvent
from runtime.engine.thread import EngineThread
from tests.runtime.engine.fake_executor import FakeExecutor, Transcript, run_to_end

END = 22


class Slots:
    """Token i of the answer is one of the i-th set; END may come where a set holds it."""

    def __init__(self, slots: Sequence[set[int]], fails_at: int | None = None) -> None:
        self._slots = slots
        self._place = 0
        self._fails_at = fails_at

    @property
    def finished(self) -> bool:
        return self._place == len(self._slots)

    def compute(self) -> None:
        if self._place == self._fails_at:
            raise ConstraintError("The grammar fell over.")

    def permits(self, token_id: int) -> bool:
        return token_id in self._slots[self._place]

    def allowed(self) -> npt.NDArray[np.intp]:
        return np.array(sorted(self._slots[self._place]), np.intp)

    def forbidden(self) -> npt.NDArray[np.intp] | None:
        others = set(range(23)) - self._slots[self._place]
        return np.array(sorted(others), np.intp) if len(others) < 6 else None

    def accept(self, token_id: int) -> None:
        assert token_id in self._slots[self._place], "a token came that was not allowed"
        self._place += 1


class SlotGrammars:
    """ "1 2|3" is token 1 or 2, then token 3; "!" is a place where the grammar fails."""

    def __init__(self, hold: threading.Event | None = None) -> None:
        self._hold = hold

    def knows(self, constraint: Constraint) -> bool:
        return False

    def matcher(self, constraint: Constraint) -> Slots:
        if self._hold is not None:
            self._hold.wait(10)
        if constraint.text == "bad":
            raise ConstraintError("it is bad")
        parts = constraint.text.split("|")
        fails_at = parts.index("!") if "!" in parts else None
        slots = [set(map(int, part.split())) if part != "!" else {0} for part in parts]
        return Slots(slots, fails_at)


def request(
    name: str,
    text: str | None,
    max_tokens: int = 20,
    prompt: tuple[int, ...] = (1, 2, 3),
    **fields: object,
) -> Request:
    constraint = None if text is None else Constraint("regex", text)
    defaults: dict[str, object] = {"sampling": SamplingParams(temperature=0.0)}
    return Request(
        name,
        prompt,
        max_tokens,
        stop_token_ids=frozenset({END}),
        constraint=constraint,
        **{**defaults, **fields},  # type: ignore[arg-type]
    )


def run(requests: Iterable[Request], executor: FakeExecutor | None = None) -> Transcript:
    engine = Engine(executor or FakeExecutor(), check=True, grammars=SlotGrammars())
    for one in requests:
        engine.add(one)
    return run_to_end(engine)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0, seed=3),
        SamplingParams(temperature=5.0, seed=3, top_k=2, top_p=0.5, min_p=0.1),
        SamplingParams(seed=3, repetition_penalty=3.0, presence_penalty=2.0, frequency_penalty=2.0),
        SamplingParams(seed=3, logit_bias={0: 100.0, 9: -100.0, 4: 50.0}),
    ],
)
def test_every_token_is_allowed_however_it_is_drawn(sampling: SamplingParams) -> None:
    transcript = run([request("a", "4 5|6|7 8 9|9", sampling=sampling)])
    first, second, third, fourth = transcript.tokens["a"]
    assert first in (4, 5) and second == 6 and third in (7, 8, 9) and fourth == 9
    assert transcript.ends["a"].finish_reason == "stop"
    assert transcript.ends["a"].token_id is None, "the last token belongs to the text"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_few_forbidden_tokens_never_come(temperature: float) -> None:
    """The best token of a step is among them as often as not."""
    text = "|".join([" ".join(str(i) for i in range(22) if i % 6 != 1)] * 40)
    sampling = SamplingParams(temperature=temperature, seed=0)
    (tokens,) = run([request("a", text, 40, sampling=sampling, min_tokens=40)]).tokens.values()
    assert len(tokens) == 40 and all(token % 6 != 1 for token in tokens)


def test_greedy_takes_the_best_of_what_is_allowed() -> None:
    seen: list[npt.NDArray[np.float32]] = []

    class Watched(FakeExecutor):
        def step(self, batch: object) -> npt.NDArray[np.float32]:
            seen.append(super().step(batch).copy())  # type: ignore[arg-type]
            return seen[-1]

    (token,) = run([request("a", "4 5 6 17")], Watched()).tokens["a"]
    assert token == max((4, 5, 6, 17), key=lambda i: seen[0][0, i])


def test_probabilities_are_those_of_the_model() -> None:
    sampling = SamplingParams(temperature=0.0, logprobs=2)
    engine = Engine(FakeExecutor(), check=True, grammars=SlotGrammars())
    engine.add(request("a", "4|5", sampling=sampling))
    free = Engine(FakeExecutor(), check=True)
    free.add(request("a", None, sampling=sampling))
    ours, theirs = engine.step()[0].logprobs, free.step()[0].logprobs
    assert ours is not None and theirs is not None
    assert ours.top == theirs.top and ours.chosen <= theirs.chosen


def test_ending_tokens_come_only_where_the_grammar_has_them() -> None:
    bias = SamplingParams(temperature=0.0, logit_bias={END: 100.0})
    transcript = run([request("a", f"4|5 {END}|6 {END}", sampling=bias)])
    assert transcript.tokens["a"] == [4, END]
    assert transcript.ends["a"] == TokenEvent("a", END, "stop")


def test_min_tokens_gives_way_where_nothing_else_may_follow() -> None:
    bias = SamplingParams(temperature=0.0, logit_bias={END: 100.0})
    text = f"4|5 {END}|{END}"
    transcript = run([request("a", text, min_tokens=10, sampling=bias)])
    assert transcript.tokens["a"] == [4, 5, END]


def test_the_token_limit_is_told_unless_the_text_is_complete() -> None:
    transcript = run([request("cut", "4|5|6", 2), request("whole", "4|5", 2)])
    assert transcript.ends["cut"].finish_reason == "length"
    assert transcript.ends["whole"].finish_reason == "stop"


def test_a_grammar_that_fails_ends_its_request_alone() -> None:
    transcript = run([request("bad", "4|!|5"), request("good", "4|5|6"), request("free", None)])
    end = transcript.ends["bad"]
    assert (end.finish_reason, end.error, end.token_id) == ("error", "The grammar fell over.", None)
    assert transcript.tokens["bad"] == [4], "and nothing unconstrained follows"
    assert transcript.tokens["good"] == [4, 5, 6]
    assert len(transcript.tokens["free"]) == 20 or transcript.tokens["free"][-1] == END


def test_what_becomes_of_constraints_is_counted() -> None:
    engine = Engine(FakeExecutor(), check=True, grammars=SlotGrammars())
    for name, text in (("falls", "4|!|5"), ("good", "4|5|6")):
        engine.add(request(name, text))
    with pytest.raises(RequestError, match="it is bad"):
        engine.add(request("bad", "bad"))
    run_to_end(engine)
    stats = engine.stats
    assert (stats.grammar_misses, stats.grammar_refusals, stats.grammar_failures) == (3, 1, 1)
    assert sum(stats.grammar_times.values()) == 3 and stats.grammar_hits == 0


@pytest.mark.parametrize("seed", range(4))
def test_preemption_changes_nothing(seed: int) -> None:
    text = "|".join(["4 5 6 7 8 9 10 11"] * 24)
    requests = [
        request(f"r{i}", text, 30, sampling=SamplingParams(seed=seed * 10 + i), prompt=(i, 2, 3))
        for i in range(6)
    ]
    alone = {one.request_id: run([one]).tokens[one.request_id] for one in requests}
    executor = FakeExecutor(num_pages=1 + 12, page_size=4)
    engine = Engine(executor, check=True, grammars=SlotGrammars())
    for one in requests:
        engine.add(one)
    together = run_to_end(engine)
    assert engine.stats.preemptions > 0 and together.tokens == alone


def test_without_grammars_a_constraint_is_refused() -> None:
    engine = Engine(FakeExecutor())
    with pytest.raises(RequestError, match="cannot hold its answers"):
        engine.add(request("a", "4"))


def test_what_cannot_be_compiled_is_refused() -> None:
    engine = Engine(FakeExecutor(), grammars=SlotGrammars())
    with pytest.raises(RequestError, match="it is bad"):
        engine.add(request("a", "bad"))
    assert not engine.has_work


class Ends:
    """Collects the last event of each request."""

    def __init__(self) -> None:
        self.events: dict[str, TokenEvent] = {}
        self._news = threading.Condition()

    def __call__(self, event: TokenEvent) -> None:
        if event.finish_reason is not None:
            with self._news:
                self.events[event.request_id] = event
                self._news.notify_all()

    def wait_for(self, name: str) -> TokenEvent:
        with self._news:
            assert self._news.wait_for(lambda: name in self.events, 10)
            return self.events[name]


def test_others_do_not_wait_for_a_grammar() -> None:
    hold, ends = threading.Event(), Ends()
    engine = Engine(FakeExecutor(), check=True, grammars=SlotGrammars(hold))
    thread = EngineThread(engine)
    thread.submit(request("slow", "4|5"), ends)
    thread.submit(request("left", "4|5"), ends)
    thread.submit(request("free", None), ends)
    assert ends.wait_for("free").finish_reason in ("length", "stop")
    assert "slow" not in ends.events and thread.stats().num_waiting == 2
    thread.abort("left")
    assert ends.wait_for("left").finish_reason == "abort"
    hold.set()
    assert ends.wait_for("slow").finish_reason == "stop"
    assert thread.shutdown(5)


def test_a_bad_grammar_on_the_thread_ends_its_request() -> None:
    ends = Ends()
    thread = EngineThread(Engine(FakeExecutor(), check=True, grammars=SlotGrammars()))
    thread.submit(request("a", "bad"), ends)
    assert ends.wait_for("a") == TokenEvent("a", None, "error", error="it is bad")
    assert thread.shutdown(5)


def test_draining_waits_for_what_is_compiling() -> None:
    hold, ends = threading.Event(), Ends()
    engine = Engine(FakeExecutor(), check=True, grammars=SlotGrammars(hold))
    thread = EngineThread(engine)
    thread.submit(request("slow", "4|5"), ends)
    threading.Timer(0.2, hold.set).start()
    assert thread.shutdown(10)
    assert ends.events["slow"].finish_reason == "stop"
