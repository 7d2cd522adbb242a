"""Times work on the device, the processor well ahead of it; where there is no GPU, anyhow."""

import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.on_gpu.sizes import SIZES

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_WARM_UP = 3
_FLUSHED_BYTES = 256 << 20
"""More than the caches of any chip here."""
_AHEAD_CYCLES = 2_000_000
"""A millisecond, in which the processor puts all of a measurement into the device's queue."""

Work = Callable[[], object]


def seconds_of(work: Work) -> float:
    """Median seconds of `work` on the device, by events, the cache full of other things."""
    if DEVICE == "cpu":
        return _on_processor(work)
    for _ in range(_WARM_UP):
        work()
    flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device=DEVICE)
    times = []
    for _ in range(SIZES.repeats):
        flushed.zero_()
        torch.cuda._sleep(_AHEAD_CYCLES)  # type: ignore[no-untyped-call]
        times.append(_between_events(work))
    return sorted(times)[len(times) // 2]


def seconds_each(works: Sequence[Work]) -> float:
    """Median seconds of one of several equal works, each with memory of its own, that a CUDA graph
    launches one behind the other: as a decode step does."""
    if DEVICE == "cpu":
        return _on_processor(works[0])
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            for work in works:
                work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for work in works:
            work()
    return seconds_of(graph.replay) / len(works)


def _between_events(work: Work) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def _on_processor(work: Work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
