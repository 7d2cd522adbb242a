"""One group of figures, in a process of its own: a kernel that hangs, or that leaves the device
unusable, takes no other group with it.

    python -m benchmarks.on_gpu.group NAME [LIMITS as JSON]

Writes a line of JSON for each figure, as soon as it is known: {"limits": ...}, {"row": ...} or
{"failed": ...}.
"""

import json
import sys
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
            yield {"failed": f"{name}: {type(error).__name__}: {error}"}


def _cells(name: str, told: Line) -> Iterable[Cell]:
    from benchmarks.on_gpu.kernels import attention_cells, packed_cells, rounded_cells
    from benchmarks.on_gpu.limits import Limits
    from benchmarks.on_gpu.models import model_cells
    from benchmarks.on_gpu.peers import peer_cells

    limits = Limits(**told)
    kind, *rest = name.split(":")
    match kind:
        case "int4":
            return packed_cells(limits)
        case "rounded":
            return rounded_cells(limits)
        case "attention":
            return attention_cells(limits)
        case "model":
            return model_cells(rest[0], rest[1], limits)
        case "peers":
            return peer_cells(rest[0])
    raise ValueError(f"no group is called {name}")


def main(name: str, told: Line) -> None:
    lines: Iterable[Line]
    if name == "limits":
        from benchmarks.on_gpu.limits import measure_limits

        lines = [{"limits": asdict(measure_limits())}]
    else:
        lines = lines_of(_cells(name, told))
    for line in lines:
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
