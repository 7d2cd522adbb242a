"""From a Model to an Executor with a page pool of a sensible size."""

from typing import Literal, Protocol

from compile.model import Model
from compile.program import Program
from quant.format.errors import InputError
from runtime.engine.batch import Executor
from runtime.footprint import weight_bytes
from runtime.kv_cache import (
    KvCacheType,
    check_pages,
    kv_bytes_per_page,
    resolve_kv_cache_type,
)
from runtime.machine import available_memory_bytes
from runtime.part_spec import PartSpec

Backend = Literal["cpu", "cuda", "torch", "onnx", "tensorrt"]
BACKENDS: tuple[Backend, ...] = ("cpu", "cuda", "torch", "onnx", "tensorrt")
AUTO = "auto"
"""ONNX Runtime and TensorRT for their own artifacts, the cpu executor for everything else."""
DEFAULT_CONTEXTS = 16
"""Full contexts that the pool holds by default, memory permitting."""
LEAST_PAGES = 2
"""One that is reserved, and one to begin with."""
DEFAULT_SHARE = 4
"""The default pool takes at most this part (one over it) of the memory that is free."""


class LoadedExecutor(Executor, Protocol):
    """An executor that knows how much memory its weights take."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all matrices as they are held."""
        ...


def load_executor(
    model: Model,
    *,
    backend: str = AUTO,
    num_pages: int | None = None,
    context_tokens: int | None = None,
    kv_cache_bytes: int | None = None,
    page_size: int = 32,
    threads: int | None = None,
    max_step_tokens: int = 256,
    exact: bool = False,
    kv_cache_type: str = AUTO,
    tensor_parallel: int = 1,
) -> LoadedExecutor:
    """Load the weights of `model` and make its page pool.

    The pool has `num_pages`; or holds `context_tokens` tokens; or fills `kv_cache_bytes`; or, where
    none is given, holds 16 full contexts or fills a quarter of the free memory (of the container,
    where there is one), whichever is less. Memory is touched only when a page is first used.

    exact: no executor may round what its model does not. Otherwise the cpu executor and ONNX
    Runtime multiply integers by inputs rounded to int8, which is several times as fast.
    kv_cache_type: a `KvCacheChoice`, see `resolve_kv_cache_type`; the torch executor rounds to it,
    and holds floats all the same. tensor_parallel: processes that share the model, each on a GPU of
    its own, or on the CPU with the torch backend.

    Raises InputError for a backend or a type that does not exist, a pool without a page, or weights
    and a pool that do not fit into the free memory,
    UnsupportedModelError before any weight is read, MissingExtraError where torch or onnxruntime is
    missing.
    """
    backend = resolve_backend(model, backend)
    number = resolve_kv_cache_type(kv_cache_type, backend, exact)
    if backend == "tensorrt":
        return _tensorrt(model, num_pages, context_tokens, kv_cache_bytes, page_size)
    if backend == "cuda":
        return _cuda(
            model,
            num_pages,
            context_tokens,
            kv_cache_bytes,
            page_size,
            number if exact or kv_cache_type != AUTO else None,
            exact,
            tensor_parallel,
        )
    held: KvCacheType = number if backend == "cpu" else "float32"
    page_bytes = kv_bytes_per_page(model.program, page_size, held)
    if num_pages is None and context_tokens is not None:
        num_pages = -(-context_tokens // page_size) + 1
    if tensor_parallel == 1:
        asked = kv_cache_bytes or LEAST_PAGES * page_bytes
        _check_memory(model, asked if num_pages is None else num_pages * page_bytes)
    if num_pages is None:
        num_pages = _pages(model, kv_cache_bytes, page_size, page_bytes)
    if tensor_parallel > 1:
        return _together(
            model, PartSpec(model.path, backend, num_pages, page_size, number), tensor_parallel
        )
    if backend == "torch":
        from runtime.executors.torch import TorchExecutor

        return TorchExecutor(model, num_pages=num_pages, page_size=page_size, cache=number)
    if backend == "onnx":
        from runtime.executors.onnx import OnnxExecutor

        return OnnxExecutor(
            model, num_pages=num_pages, page_size=page_size, threads=threads, exact=exact
        )
    from runtime.executors.cpu import CpuExecutor

    return CpuExecutor(
        model,
        num_pages=num_pages,
        page_size=page_size,
        threads=threads,
        max_step_tokens=max_step_tokens,
        activations="float32" if exact else "int8",
        cache=number,
    )


def _cuda(
    model: Model,
    pages: int | None,
    tokens: int | None,
    size: int | None,
    page_size: int,
    number: KvCacheType | None,
    exact: bool,
    ranks: int,
) -> LoadedExecutor:
    """Its pages lie in the GPU's memory as well. number: None is what the checkpoint holds scales
    for, else the executor's own."""
    from runtime.executors.cuda import (
        CudaExecutor,
        CudaRecorder,
        pages_that_fit,
        require_gpu,
        stored_number,
    )

    require_gpu()
    held = number or stored_number(model.weights) or "bfloat16"
    if pages is None and tokens is not None:
        pages = -(-tokens // page_size) + 1
    if pages is None:
        program = model.program if ranks == 1 else _part(model, ranks)
        pages = pages_that_fit(program, page_size, held, size)
    if ranks > 1:
        return _together(
            model, PartSpec(model.path, "cuda", pages, page_size, number, exact), ranks
        )
    executor = CudaExecutor(
        model,
        num_pages=pages,
        page_size=page_size,
        dtype="float32" if exact else "bfloat16",
        cache=number,
        recorder=None if exact else CudaRecorder(),
    )
    executor.record_all()
    return executor


def _part(model: Model, ranks: int) -> Program:
    """What one of several processes holds."""
    from runtime.parallel.part import part_of

    return part_of(model, 0, ranks).program


def _together(model: Model, spec: PartSpec, ranks: int) -> LoadedExecutor:
    from runtime.parallel import start_parallel

    return start_parallel(model, spec, ranks)


def _tensorrt(
    model: Model, pages: int | None, tokens: int | None, size: int | None, page_size: int
) -> LoadedExecutor:
    """Its pages lie in the GPU's memory, of which only the executor knows how much there is."""
    from runtime.executors.tensorrt import TensorRTExecutor

    if pages is None and tokens is not None:
        pages = -(-tokens // page_size) + 1
    return TensorRTExecutor(model, num_pages=pages, kv_cache_bytes=size, page_size=page_size)


def resolve_backend(model: Model, backend: str) -> Backend:
    """The backend that runs `model`. Raises InputError for one that does not exist."""
    if backend == AUTO:
        return model.kind if model.kind in ("onnx", "tensorrt") else "cpu"
    known = next((name for name in BACKENDS if name == backend), None)
    if known is None:
        raise InputError(f"backend {backend!r} does not exist; choose {', '.join(BACKENDS)}")
    return known


def _check_memory(model: Model, pool_bytes: int) -> None:
    """Raises InputError with the arithmetic, before any weight is read."""
    free, weights = available_memory_bytes(), weight_bytes(model)
    if not free or weights + pool_bytes <= free:
        return
    raise InputError(
        f"{model.path}: does not fit into memory: weights {_mb(weights)} + KV cache "
        f"{_mb(pool_bytes)} = {_mb(weights + pool_bytes)} of {_mb(free)} free; choose a model of "
        "fewer bits, a smaller KV cache, or give it more memory"
    )


def _pages(model: Model, size: int | None, page_size: int, page_bytes: int) -> int:
    """Those of `size` bytes; by default as many as memory has room for."""
    wanted = -(-DEFAULT_CONTEXTS * model.program.sizes.max_positions // page_size) + 1
    free = available_memory_bytes()
    if size is not None:
        wanted = size // page_bytes
    elif free:
        room = min(free // DEFAULT_SHARE, free - weight_bytes(model))
        wanted = min(wanted, max(room // page_bytes, LEAST_PAGES))
    check_pages(wanted, page_bytes)
    return wanted


def _mb(size: int) -> str:
    return f"{size / 10**6:,.0f} MB"
