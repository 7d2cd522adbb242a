"""One group of figures, in a process of its own: a kernel that hangs, or that leaves the device
unusable, takes no other group with it.

    python -m benchmarks.on_gpu.group NAME [LIMITS as JSON]

Writes a line of JSON for each figure, as soon as it is known: {"limits": ...}, {"row": ...} or
{"failed": ...}. Where there is no GPU, everything is tiny, and Triton's interpreter runs the
kernels.
"""

import json
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from benchmarks.on_gpu.table import Cell

Line = dict[str, Any]


def lines_of(cells: Iterable[Cell]) -> Iterator[Line]:
    """Each cell's rows, or why it has none; the others are measured all the same."""
    for name, measure in cells:
        print(f"measuring: {name}", file=sys.stderr)
        try:
            for row in measure():
                yield {"row": asdict(row)}
        except Exception as error:
            traceback.print_exc()
            yield {"failed": f"{name}: {type(error).__name__}: {first_line(error)}"}


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def lines_of_limits() -> Iterator[Line]:
    """All that is known after each of them."""
    from benchmarks.on_gpu.limits import Limits, measure_limits

    for found in measure_limits():
        yield {"limits": asdict(found)} if isinstance(found, Limits) else {"failed": found}


def lines_of_group(name: str, told: Line) -> Iterator[Line]:
    """told: what was said of limits."""
    return lines_of_limits() if name == "limits" else lines_of(_cells(name, told))


def _cells(name: str, told: Line) -> Iterable[Cell]:
    from benchmarks.on_gpu.limits import Limits

    limits = Limits(**told)
    kind, *rest = name.split(":")
    match kind:
        case "int4" | "rounded" | "sampling":
            from benchmarks.on_gpu import kernels

            made = {
                "int4": kernels.packed_cells,
                "rounded": kernels.rounded_cells,
                "sampling": kernels.sampling_cells,
            }
            return made[kind](limits)
        case "attention":
            from benchmarks.on_gpu.attention import attention_cells

            return attention_cells(limits)
        case "model":
            from benchmarks.on_gpu.models import model_cells

            return model_cells(rest[0], rest[1], limits)
        case "peers":
            from benchmarks.on_gpu.peers import peer_cells

            return peer_cells(rest[0], rest[1])
    raise ValueError(f"no group is called {name}")


def main(name: str, told: Line) -> None:
    for line in lines_of_group(name, told):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
        from benchmarks.on_gpu.interpreting import mend_bfloat16

        mend_bfloat16()
    main(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
