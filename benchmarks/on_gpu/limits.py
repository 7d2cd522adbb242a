"""What this chip does in a plain copy and in plain products: what fractions are fractions of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version

import torch

from benchmarks.on_gpu.clock import DEVICE, seconds_of
from benchmarks.on_gpu.sizes import SIZES


@dataclass(frozen=True)
class Limits:
    """bandwidth: bytes read and written per second. products: multiplications with addition, times
    two, per second; None where torch cannot."""

    device: str
    bandwidth: float
    bfloat16: float
    int8: float | None
    e4m3: float | None


def measure_limits() -> Iterator[Limits | str]:
    """On the current device; each has a number more than the one before it, so that a product that
    breaks the device leaves what was known. A sentence for what torch does not multiply."""
    source = torch.empty(SIZES.copied // 2, dtype=torch.int16, device=DEVICE)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / seconds_of(partial(target.copy_, source))
    del source, target
    size = SIZES.product
    operations = 2.0 * size**3
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    bfloat16 = operations / seconds_of(partial(torch.matmul, a, b))
    made_by = f"torch {torch.__version__}, triton {version('triton')}"
    name = f"{_device_name()}, {made_by}"
    found = Limits(name, bandwidth, bfloat16, None, None)
    yield found
    # Where torch has no such product there is no limit to be a fraction of.
    try:
        found = replace(found, int8=operations / seconds_of(_product_of_int8(a, b)))
        yield found
    except Exception as error:
        yield f"torch's product of int8: {error}"
    try:
        yield replace(found, e4m3=operations / seconds_of(_product_of_e4m3(a, b)))
    except Exception as error:
        yield f"torch's product of e4m3: {error}"


def _device_name() -> str:
    if DEVICE == "cpu":
        return "the interpreter on a processor"
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def _product_of_int8(a: torch.Tensor, b: torch.Tensor) -> Callable[[], torch.Tensor]:
    x, y = a.to(torch.int8), b.to(torch.int8).T.contiguous().T
    return partial(torch._int_mm, x, y)


def _product_of_e4m3(a: torch.Tensor, b: torch.Tensor) -> Callable[[], torch.Tensor]:
    p, q = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).T.contiguous().T
    rows, columns = (torch.ones(*size, device=DEVICE) for size in ((len(a), 1), (1, len(a))))
    return lambda: torch._scaled_mm(p, q, scale_a=rows, scale_b=columns, out_dtype=torch.bfloat16)
