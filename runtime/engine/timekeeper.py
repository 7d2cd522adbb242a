"""All that the engine knows of time: how long steps and requests take, and whose time is over."""

from collections.abc import Callable, Sequence

from runtime.engine.budget import StepBudget
from runtime.engine.deadlines import Deadlines
from runtime.engine.options import EngineOptions
from runtime.engine.plan import Chunk
from runtime.engine.sequence import SequenceState
from runtime.engine.service_rate import ServiceRate


class Timekeeper:
    """Asks for differences of the injected clock only, in seconds."""

    def __init__(self, clock: Callable[[], float], options: EngineOptions) -> None:
        self.clock = clock
        self.budget = StepBudget(options.max_step_tokens, options.target_step_seconds)
        self._max_running = options.max_running
        self._deadlines = Deadlines(options)
        self._rate = ServiceRate()

    def arrive(self, sequence: SequenceState, at: float | None = None) -> None:
        """Its time runs from then on, or from now."""
        sequence.arrived_at = self.clock() if at is None else at
        self._deadlines.add(sequence, sequence.arrived_at)

    def start(self, chunks: Sequence[Chunk], now: float) -> None:
        """These are planned; some of the sequences for the first time."""
        for chunk in chunks:
            if chunk.admitted and not chunk.sequence.started:
                chunk.sequence.started, chunk.sequence.started_at = True, now

    def end(self, sequence: SequenceState) -> None:
        self._deadlines.end(sequence)
        if sequence.started:
            self._rate.note(self.clock() - sequence.started_at)

    def end_all(self) -> None:
        """Nothing is learned from how long they took."""
        self._deadlines.clear()

    def expired(self, now: float) -> list[tuple[SequenceState, str]]:
        """Whose time is over, with a sentence that says why."""
        return self._deadlines.expired(now)

    def expected_wait(self, running: Sequence[SequenceState], num_ahead: int) -> float:
        """Seconds until a request behind `num_ahead` waiting ones is likely to start."""
        if num_ahead == 0 and len(running) < self._max_running:
            return 0.0
        now = self.clock()
        oldest = min((sequence.started_at for sequence in running if sequence.started), default=now)
        return self._rate.expected_wait(num_ahead, len(running), now - oldest)
