"""What this chip does in a plain copy and in plain products: what fractions are fractions of."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

REPEATS = 20
WARM_UP = 3
COPY_BYTES = 2 << 30
PRODUCT_SIZE = 8192


@dataclass(frozen=True)
class Limits:
    """bandwidth: bytes read and written per second. products: multiplications with addition, times
    two, per second; e4m3 is None where torch cannot."""

    device: str
    bandwidth: float
    bfloat16: float
    int8: float | None
    e4m3: float | None


def seconds_of(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median seconds of `work` on the device, by events, the cache full of other things."""
    for _ in range(WARM_UP):
        work()
    times: list[float] = []
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    for _ in range(repeats):
        flush.zero_()
        begin, end = _event(), _event()
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(float(begin.elapsed_time(end)) / 1000)
    return sorted(times)[len(times) // 2]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def measure_limits() -> Limits:
    """On the current device."""
    source = torch.empty(COPY_BYTES // 2, dtype=torch.int16, device="cuda")
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / seconds_of(partial(target.copy_, source))
    del source, target
    size = PRODUCT_SIZE
    operations = 2.0 * size**3
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    bfloat16 = operations / seconds_of(partial(torch.matmul, a, b))
    found = Limits(torch.cuda.get_device_name(), bandwidth, bfloat16, None, None)
    # Where torch has no such product, or it fails, there is no limit to be a fraction of.
    with contextlib.suppress(RuntimeError):
        x, y = a.to(torch.int8), b.to(torch.int8).T.contiguous().T
        found = replace(found, int8=operations / seconds_of(partial(torch._int_mm, x, y)))
    with contextlib.suppress(RuntimeError):
        found = replace(found, e4m3=operations / seconds_of(_product_of_e4m3(a, b)))
    return found


def _product_of_e4m3(a: torch.Tensor, b: torch.Tensor) -> Callable[[], torch.Tensor]:
    p, q = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).T.contiguous().T
    rows, columns = (torch.ones(*size, device="cuda") for size in ((len(a), 1), (1, len(a))))
    return lambda: torch._scaled_mm(p, q, scale_a=rows, scale_b=columns, out_dtype=torch.bfloat16)
