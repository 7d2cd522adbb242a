"""How long one decoder layer takes to round, with weights and statistics made up.

`python -m benchmarks.rounding [--threads N]` prints, for each set of linears that read one input,
the wall and processor time of factoring the Hessian and of rounding to int4 in groups of 64.
"""

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from quant.format.scheme import IntScheme, PerGroup
from quant.rounding_algorithms.factor import factor
from quant.rounding_algorithms.gptq import GptqOptions, gptq
from quant.workers import fixed_division

Result = TypeVar("Result")

# SmolLM2-135M: output features of each linear, input features that they share.
_STAGES = {
    "q k v": ([576, 192, 192], 576),
    "o": ([576], 576),
    "gate up": ([1536, 1536], 576),
    "down": ([576], 1536),
}
_SCHEME = IntScheme(4, True, PerGroup(64))


def correlated_moments(columns: int, generator: torch.Generator) -> torch.Tensor:
    """float32 [columns, columns]: neighbours correlate (0.9 per step), sizes are log-normal."""
    index = torch.arange(columns)
    correlation = 0.9 ** (index[:, None] - index).abs().float()
    size = torch.randn(columns, generator=generator).exp()
    return correlation * (size * size[:, None])


def timed(action: Callable[[], Result]) -> tuple[Result, float, float]:
    """(result, wall seconds, processor seconds of all threads)."""
    wall, processor = time.perf_counter(), time.process_time()
    result = action()
    return result, time.perf_counter() - wall, time.process_time() - processor


def round_stage(outs: list[int], columns: int) -> list[float]:
    """Milliseconds: factor wall and processor, rounding wall and processor."""
    generator = torch.Generator().manual_seed(0)
    hessian = correlated_moments(columns, generator)
    weights = [torch.randn(out, columns, generator=generator) * 0.05 for out in outs]
    options = GptqOptions()
    with fixed_division() as workers:
        factored, *first = timed(lambda: factor(hessian, options.damping, True, workers))
        _, *second = timed(
            lambda: gptq(weights, hessian, factored, _SCHEME, "bfloat16", options, workers)
        )
    return [1000 * seconds for seconds in (*first, *second)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3, help="the fastest of so many counts")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"ms, {arguments.threads} threads    factor (cpu)    rounding (cpu)")
    totals = [0.0] * 4
    for name, (outs, columns) in _STAGES.items():
        rounds = [round_stage(outs, columns) for _ in range(arguments.rounds)]
        best = [min(column) for column in zip(*rounds, strict=True)]
        totals = [total + one for total, one in zip(totals, best, strict=True)]
        print_row(name, best)
    print_row("layer", totals)


def print_row(name: str, times: list[float]) -> None:
    print(f"{name:15} {times[0]:8.0f} {times[1]:7.0f} {times[2]:8.0f} {times[3]:7.0f}")


if __name__ == "__main__":
    main()
