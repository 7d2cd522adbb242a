"""The page pool follows the memory that there is, while the model runs."""

import logging
import threading
from collections.abc import Callable

from runtime.engine.batch import Executor, GivesBack
from runtime.engine.stats import EngineStats
from runtime.engine.thread import EngineThread
from runtime.machine import HEADROOM_BYTES, available_memory_bytes
from runtime.worker.spec import ModelSpec

_log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
STEPS = 32
RESERVE_BYTES = HEADROOM_BYTES // 4
"""Left to what else this process and others may need before the next look."""


class MemoryWatch:
    """Pages that were never written to take no memory yet. Where what is free would not hold them
    all, some go out of use, and come back when it would.

    least_pages: what requests that were accepted may need. page_bytes: of one page, all layers.
    """

    def __init__(
        self,
        thread: EngineThread,
        num_pages: int,
        least_pages: int,
        page_bytes: int,
        available: Callable[[], int] = available_memory_bytes,
    ) -> None:
        self._thread = thread
        self._num_pages = num_pages
        self._least_pages = least_pages
        self._page_bytes = page_bytes
        self._available = available
        self._most = num_pages

    def start(self) -> None:
        """Look again and again, on a thread of its own; not where nobody knows what is free."""
        if self._available() > 0:
            threading.Thread(target=self._watch, name="coldpress-memory", daemon=True).start()

    def look(self) -> None:
        """Once."""
        fit = self._fit(self._thread.stats())
        is_back = fit >= min(self._num_pages, self._most + self._num_pages // 8)
        if fit < self._most or (is_back and self._most < self._num_pages):
            self._most = fit
            _log.warning("memory for %d of %d pages of the KV cache", fit, self._num_pages)
            self._thread.limit_pages(fit)

    def _fit(self, stats: EngineStats) -> int:
        """Pages that there is memory for, those that take it already included."""
        more = (self._available() - RESERVE_BYTES) // self._page_bytes
        fit = stats.pages_written + more
        if fit >= self._num_pages:
            return self._num_pages
        # In steps, so that memory which dwindles is not followed page by page.
        return max(self._least_pages, fit - fit % max(1, self._num_pages // STEPS))

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(LOOK_SECONDS):
            self.look()


def watch_memory(spec: ModelSpec, executor: Executor, thread: EngineThread) -> None:
    """Begin to, where the executor can give single pages back."""
    bytes_of_all = getattr(executor, "cache_bytes", 0)
    if not isinstance(executor, GivesBack) or not bytes_of_all:
        return
    num_pages, size = executor.num_pages - 1, executor.page_size
    context = min(spec.context or executor.max_positions, num_pages * size)
    page_bytes = bytes_of_all // executor.num_pages
    MemoryWatch(thread, num_pages, -(-context // size), page_bytes).start()
