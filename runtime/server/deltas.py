"""What comes of running generations, on the event loop's thread and without a task that waits."""

from collections.abc import Callable, Sequence

from runtime.generation import Generation, TextDelta
from runtime.server.errors import generation_failed, timed_out
from runtime.server.metrics import Metrics, Stopwatch
from runtime.server.record import current_record
from runtime.server.wakeups import wakeups

_FAILURES = ("error", "abort", "timeout")


class Deltas:
    """`take` gives what has come of all generations since the last time.

    failure: an ApiError once one of them has failed, or what reading them raised; what came before
    it has been given. has_ended: nothing comes any more, well or not.
    """

    def __init__(self, generations: Sequence[Generation], metrics: Metrics) -> None:
        self.failure: Exception | None = None
        self._generations = generations
        self._watches = [Stopwatch(metrics, generation) for generation in generations]
        self._num_live = sum(generation.finish_reason is None for generation in generations)
        record = current_record()
        self._num_choices = 1 if record is None else record.choices
        self._answers = [metrics.of(one.model_name) for one in generations[:: self._num_choices]]
        self._is_told = False

    @property
    def has_ended(self) -> bool:
        return not self._num_live or self.failure is not None

    def on_news(self, notify: Callable[[], None]) -> None:
        """`notify` is called on the loop that runs the caller, once for all that came at a time."""
        wake = wakeups().call_soon

        def look() -> None:
            # First: what comes from here on may be missed below, so it must be told anew.
            self._is_told = False
            notify()

        def tell() -> None:
            if not self._is_told:
                self._is_told = True
                wake(look)

        for generation in self._generations:
            generation.on_news(tell)

    def take(self) -> list[tuple[int, TextDelta]]:
        """Which generation, and what it gave; in order for each."""
        ready: list[tuple[int, TextDelta]] = []
        if self.failure is not None:
            return ready
        try:
            for index, generation in enumerate(self._generations):
                for delta in generation.poll():
                    self._watches[index].token(delta)
                    if delta.finish_reason is not None:
                        self._num_live -= 1
                        if delta.finish_reason in _FAILURES:
                            self._fail(generation, delta)
                            continue
                    ready.append((index, delta))
        except Exception as bug:
            self.failure = bug
        return ready

    def close(self) -> None:
        """Nobody listens any more; what still runs is cancelled."""
        for watch, generation in zip(self._watches, self._generations, strict=True):
            watch.close()
            generation.cancel()
        for number, answers in enumerate(self._answers):
            start = number * self._num_choices
            group = self._generations[start : start + self._num_choices]
            answers.choices.observe(len(group))
            answers.longest_answer.observe(max(one.num_answer_tokens for one in group))

    def _fail(self, generation: Generation, delta: TextDelta) -> None:
        if self.failure is not None:
            return
        if delta.finish_reason == "timeout":
            self.failure = timed_out(delta.error, is_own=generation.sets_time)
        else:
            self.failure = generation_failed(delta.error)
