"""CpuExecutor: the Executor that `serve` uses where there is no accelerator."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from compile.model import Model
from runtime.engine.batch import PlainDraw, StepBatch
from runtime.executors.cpu.lowering import lower
from runtime.executors.cpu.support import check_supported
from runtime.executors.cpu.weights import Weights
from runtime.kernels.cpu._native import Plan, ThreadPool
from runtime.kv_cache import KvCacheType
from runtime.machine import available_threads

Activations = Literal["int8", "float32"]


@dataclass(frozen=True)
class OpTime:
    """Seconds of all ops of one kind: in steps with prompts in them, and in those of one token for
    each sequence."""

    op: str
    prefill_seconds: float
    decode_seconds: float


class CpuExecutor:
    """Implements `runtime.engine.batch.Executor` with the native kernels.

    threads: None uses every core that this process may use. max_step_tokens: steps of up to so
    many tokens run in memory that is taken now; a larger one takes more. instruction_set: one of
    `runtime.kernels.cpu._native.instruction_sets()`, or "auto" for the best. activations: what
    integer weights are multiplied by: "float32", the numbers as they are; or "int8", which rounds
    each run of 32 by a scale of its own and is several times as fast, and lets attention round
    queries and weights to the bfloat16 of the cache. cache: what keys and values are kept in.

    All other arithmetic is float32 over the stored numbers. A row's bits depend on the row alone,
    whatever the step, the threads and the pages.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_pages: int,
        page_size: int = 32,
        threads: int | None = None,
        max_step_tokens: int = 512,
        instruction_set: str = "auto",
        activations: Activations = "float32",
        cache: KvCacheType = "float32",
    ) -> None:
        check_supported(model.program)
        assert num_pages > 1 and page_size > 0, "page 0 is reserved: a pool has two pages or more"
        sizes = model.program.sizes
        self.vocab_size, self.max_positions = sizes.vocab_size, sizes.max_positions
        self.page_size, self.num_pages = page_size, num_pages
        pool = ThreadPool(threads or available_threads())
        weights = Weights(model.weights, pool, activations == "int8")
        plan = Plan(pool, instruction_set)
        self._results = lower(model.program, weights, plan, cache, activations == "int8")
        plan.allocate(num_pages, page_size, max_step_tokens, self.vocab_size)
        self.threads = pool.size
        self.weight_bytes = weights.nbytes
        self.cache_bytes = plan.cache_bytes
        self._plan: Plan | None = plan

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        """Logits, float32 [R, vocab_size]: native memory that the next step overwrites."""
        return self._run(batch, self._results.logits, None)

    def best(self) -> npt.NDArray[np.int32]:
        """Implements `runtime.engine.batch.FindsBest`."""
        assert self._plan is not None, "the executor is closed"
        return self._plan.best()

    def draw(
        self, logits: npt.NDArray[np.float32], rows: Sequence[int], draws: Sequence[PlainDraw]
    ) -> list[int]:
        """See `runtime.engine.batch.DrawsRows`."""
        assert self._plan is not None, "the executor is closed"
        options = [(d.temperature, d.top_k, d.top_p, d.min_p, d.uniform) for d in draws]
        return self._plan.draw(logits, rows, options)

    def hidden(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        """What logits are made of, float32 [R, hidden_size]: native memory as well."""
        return self._run(batch, self._results.hidden, self._results.hidden_ops)

    def _run(self, batch: StepBatch, result: int, ops: int | None) -> npt.NDArray[np.float32]:
        assert self._plan is not None, "the executor is closed"
        return self._plan.step(
            np.ascontiguousarray(batch.token_ids, dtype=np.int32),
            np.ascontiguousarray(batch.positions, dtype=np.int32),
            np.ascontiguousarray(batch.query_starts, dtype=np.int32),
            np.ascontiguousarray(batch.page_table, dtype=np.int32),
            np.ascontiguousarray(batch.logit_rows, dtype=np.int32),
            result,
            ops,
        )

    def give_back(self, pages: Sequence[int]) -> None:
        """Nobody will read what these pages hold: they take no memory until they are written to."""
        assert self._plan is not None, "the executor is closed"
        self._plan.give_back(pages)

    def profile(self, on: bool) -> None:
        """Time every op of the steps that follow, from zero; a step takes a little longer then."""
        assert self._plan is not None, "the executor is closed"
        self._plan.profile(on)

    def timings(self) -> list[OpTime]:
        """Where the time of the steps since `profile(True)` went, by kind of op."""
        assert self._plan is not None, "the executor is closed"
        sums: dict[str, tuple[float, float]] = {}
        for name, prefill, decode in self._plan.timings():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = before[0] + prefill, before[1] + decode
        return [OpTime(name, *seconds) for name, seconds in sums.items()]

    def close(self) -> None:
        """Frees weights, pool and threads, once the last logits are let go of too."""
        self._plan = None
