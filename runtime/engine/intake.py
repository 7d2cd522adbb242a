"""What a request must be, and what is made of it, before it is queued."""

from collections.abc import Callable

from runtime.engine.batch import Executor, GivesHidden
from runtime.engine.constraint import ConstraintError, Grammars, Matcher
from runtime.engine.pages import PagePool
from runtime.engine.request import Request, RequestError
from runtime.engine.stats import Counters
from runtime.engine.validate import check_request


class Intake:
    """Safe from any thread, but for `matcher_of`, which is for one at a time."""

    def __init__(
        self,
        executor: Executor,
        grammars: Grammars | None,
        counters: Counters,
        clock: Callable[[], float],
    ) -> None:
        self._executor = executor
        self._grammars = grammars
        self._counters = counters
        self._clock = clock

    def check(self, request: Request, pool: PagePool) -> None:
        """RequestError if the request could never be served."""
        check_request(
            request,
            vocab_size=self._executor.vocab_size,
            max_positions=self._executor.max_positions,
            pool_tokens=pool.capacity * pool.page_size,
            gives_hidden=isinstance(self._executor, GivesHidden),
        )
        if request.constraint is not None and self._grammars is None:
            raise RequestError("this model cannot hold its answers to a grammar", "constraint")

    def matcher_of(self, request: Request) -> Matcher | None:
        """What holds the request's answer to its constraint, None where it has none; RequestError
        where that cannot be compiled."""
        constraint, grammars = request.constraint, self._grammars
        if constraint is None or grammars is None:
            return None
        if grammars.knows(constraint):
            self._counters.grammar_hits += 1
            return grammars.matcher(constraint)
        started, refused = self._clock(), True
        try:
            matcher = grammars.matcher(constraint)
            refused = False
        except ConstraintError as error:
            raise RequestError(str(error), "constraint") from error
        finally:
            self._counters.note_compiled(self._clock() - started, refused=refused)
        return matcher
