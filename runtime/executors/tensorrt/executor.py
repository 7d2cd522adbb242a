"""The TensorRT executor: an engine runs the step, we own the pages and all other memory."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from compile.engine_file import Builder, EngineFacts, check_engine, check_machine, read_facts
from compile.model import Model
from compile.onnx_contract import LOGITS, new_names, pool_names
from compile.program import Attend
from quant.format.errors import InputError
from runtime.engine.batch import StepBatch
from runtime.executors.tensorrt.interface import EngineContext, Platform
from runtime.executors.tensorrt.memory import HALF_BYTES, Buffer, make_pools, places, runs_of
from runtime.graph_step import PartOfStep, split
from runtime.kv_cache import check_pages

OpenPlatform = Callable[[Builder], Platform]
Rows = npt.NDArray[np.int64]
DEFAULT_CONTEXTS = 16
SPARE = 8
"""One part of this many of the free memory is left to buffers of steps."""


def nvidia_platform(builder: Builder) -> Platform:
    from runtime.executors.tensorrt.platform import NvidiaPlatform

    return NvidiaPlatform(builder)


class TensorRTExecutor:
    """Implements `runtime.engine.batch.Executor` with an engine on a GPU.

    The pool has `num_pages`; or fills `kv_cache_bytes` of the GPU's memory; or holds 16 contexts,
    as far as they fit. Keys and values are float16. TensorRT chooses kernels by the shapes of a
    step, so a row's last bits may depend on who shares its step.

    Raises InputError, FileFormatError or MissingExtraError, each with what to do, for an engine
    that is damaged or made for another version or GPU, and where there is no GPU.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_pages: int | None = None,
        kv_cache_bytes: int | None = None,
        page_size: int = 32,
        open_platform: OpenPlatform = nvidia_platform,
    ) -> None:
        if model.kind != "tensorrt" or model.directory is None:
            raise InputError(
                f"{model.path}: holds no engine; make one with: coldpress build CHECKPOINT -o DIR "
                "--target tensorrt:smNN"
            )
        facts = read_facts(model.directory)
        engine = check_engine(model.directory, facts)
        least, largest = facts.limits.least_page_size, facts.limits.page_size
        if not least <= page_size <= largest:
            raise InputError(
                f"{engine}: takes pages of {least} to {largest} tokens, and not of {page_size}"
            )
        platform = open_platform(facts.builder)
        check_machine(facts, platform.version, platform.device.card)
        self._facts, self._device, self.page_size = facts, platform.device, page_size
        sizes = model.program.sizes
        self.vocab_size, self.weight_bytes = sizes.vocab_size, facts.engine_bytes
        # Of the model, or of the engine if that takes less.
        self.max_positions = min(sizes.max_positions, facts.limits.context)
        layers = [op for op in model.program.ops if isinstance(op, Attend)]
        rows = {n: (op.kv_heads, op.head_dim) for op in layers for n in pool_names(op.layer)}
        self._new = [name for op in layers for name in new_names(op.layer)]
        self._context: EngineContext | None = platform.load(engine)
        page_bytes = HALF_BYTES * page_size * sum(heads * size for heads, size in rows.values())
        self.num_pages = num_pages or self._pages_for(page_bytes, kv_cache_bytes, facts)
        self._pools = make_pools(self._device, rows, self.num_pages, page_size)
        self._inputs, self._outputs = Buffer(self._device), Buffer(self._device)
        self._scratch = Buffer(self._device)

    def _pages_for(self, page_bytes: int, size: int | None, facts: EngineFacts) -> int:
        largest = facts.profile["N"][2]
        if size is not None:
            pages = min(size // page_bytes, largest)
        else:
            free = self._device.free_bytes()
            wanted = DEFAULT_CONTEXTS * facts.limits.past_pages(self.page_size) + 1
            pages = min(wanted, (free - free // SPARE) // page_bytes, largest)
        check_pages(pages, page_bytes)
        return pages

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        """Logits, float32 [R, vocab_size].

        Rows are written as soon as they are there: a step that fails has written to its own slots
        alone, which nobody reads before a step has succeeded.
        """
        self._device.enter()
        limits = self._facts.limits
        logits = np.empty((len(batch.logit_rows), self.vocab_size), np.float32)
        for piece, rows in pieces(batch, limits.tokens):
            lengths = np.diff(piece.query_starts).astype(np.int64)
            for part in split(lengths, limits.tokens, limits.sequences):
                run = PartOfStep(piece, part, self.page_size)
                logits[rows[run.wanted]] = self._run(run)[: len(run.wanted)]
        return logits

    def _run(self, run: PartOfStep) -> npt.NDArray[np.float32]:
        assert self._context is not None, "the executor is closed"
        device, shapes = self._device, {n: array.shape for n, array in run.inputs.items()}
        # The copy reads `host`, which must live until it is done.
        addresses, host = self._upload(run)
        for name, pool in self._pools.items():
            shapes[name], addresses[name] = pool.shape, pool.address
        logits = np.empty((len(run.inputs["logit_rows"]), self.vocab_size), np.float32)
        row_bytes = [pool.row_bytes for pool in self._pools.values()]
        offsets, end = places([logits.nbytes, *(len(run.slots) * size for size in row_bytes)])
        outputs = self._outputs.at_least(end)
        for name, offset in zip((LOGITS, *self._new), offsets, strict=True):
            addresses[name] = outputs + offset
        self._context.run(shapes, addresses, device.stream, self._scratch.at_least)
        for pool, name in zip(self._pools.values(), self._new, strict=True):
            for slot, row, count in runs_of(run.slots):
                size, source = pool.row_bytes, addresses[name]
                device.copy(pool.address + slot * size, source + row * size, count * size)
        device.download(logits, outputs)
        device.wait()
        del host
        return logits

    def _upload(self, run: PartOfStep) -> tuple[dict[str, int], npt.NDArray[np.uint8]]:
        """All inputs but the pools, in one copy: their addresses, and what is copied."""
        offsets, end = places([array.nbytes for array in run.inputs.values()])
        host, start = np.zeros(end, np.uint8), self._inputs.at_least(end)
        addresses = {}
        for (name, array), offset in zip(run.inputs.items(), offsets, strict=True):
            host[offset : offset + array.nbytes].view(np.int64)[:] = array.reshape(-1)
            addresses[name] = start + offset
        self._device.upload(start, host)
        return addresses, host

    def close(self) -> None:
        """Frees the engine, the pool and the buffers."""
        if self._context is None:
            return
        self._device.enter()
        self._device.wait()
        self._context = None
        for buffer in (self._inputs, self._outputs, self._scratch):
            buffer.close()
        for pool in self._pools.values():
            self._device.free(pool.address)
        self._pools = {}
        self._device.close()


def pieces(batch: StepBatch, tokens: int) -> Iterator[tuple[StepBatch, Rows]]:
    """The batch in pieces in which no sequence has more than so many tokens, in order; and which of
    the batch's logits each piece computes."""
    lengths = np.diff(batch.query_starts)
    rounds = max(1, -(-int(lengths.max(initial=0)) // tokens))
    if rounds == 1:
        yield batch, np.arange(len(batch.logit_rows))
        return
    for index in range(rounds):
        first = np.minimum(index * tokens, lengths)
        counts = np.minimum(lengths - first, tokens)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        sequence = np.repeat(np.arange(len(lengths)), counts)
        within = np.arange(starts[-1]) - starts[sequence]
        taken = batch.query_starts[sequence] + first[sequence] + within
        place = np.full(len(batch.token_ids), -1, np.int64)
        place[taken] = np.arange(len(taken))
        rows = np.flatnonzero(place[batch.logit_rows] >= 0)
        wanted = place[batch.logit_rows[rows]].astype(np.int32)
        ids, positions = batch.token_ids[taken], batch.positions[taken]
        yield StepBatch(ids, positions, starts, batch.page_table, wanted), rows
