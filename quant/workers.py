"""Work divided in the same way on any number of threads.

How an operation is split over threads decides the order of its sums, and with it the last bits of
every result. So each operation runs on one thread here, and threads take whole jobs: what a job is
follows from the model and the recipe alone.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class Workers:
    """Runs jobs on `threads` threads. Made by `fixed_division`."""

    def __init__(self, threads: int, pool: ThreadPoolExecutor) -> None:
        self.threads = threads
        self._pool = pool

    def run(self, jobs: Sequence[Callable[[], Result]]) -> list[Result]:
        """What each job gives, in the order of the jobs; raises what the first failed one did."""
        return list(self._pool.map(_call, jobs))


def run_jobs(jobs: Sequence[Callable[[], Result]], workers: Workers | None) -> list[Result]:
    """What each job gives, in their order: on the threads of `workers`, or else on this one."""
    return [job() for job in jobs] if workers is None else workers.run(jobs)


@contextmanager
def fixed_division() -> Iterator[Workers]:
    """As many workers as torch has threads; torch itself uses one until the block ends."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=single_threaded) as pool:
            yield Workers(threads, pool)
    finally:
        torch.set_num_threads(threads)


def single_threaded() -> None:
    """To be called first on every new thread: the libraries below torch count threads for each."""
    torch.set_num_threads(1)


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """float32 products of numbers that bfloat16 holds exactly, by the faster instructions.

    Nothing is lost: the products are exact in both, and sums are float32 in both.
    """
    settings: Any = torch.backends.mkldnn
    before = settings.matmul.fp32_precision
    settings.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.matmul.fp32_precision = before


def _call(job: Callable[[], Result]) -> Result:
    with torch.no_grad():
        return job()
