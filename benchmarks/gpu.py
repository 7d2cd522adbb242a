"""Builds, checks and times everything that runs on a GPU, in one call of under ten minutes.

    python -m benchmarks.gpu [-o DIR] [--skip-tests]

Runs the GPU tests compiled, then measures what the chip does in a plain copy and a plain product,
the kernels and whole models of 1.1B and 8B shape with random weights as fractions of that, and
beside them transformers with bfloat16, a static cache and torch.compile, and torch's own int4 and
FP8 products. Prints a table; writes DIR/gpu.json and DIR/gpu.md.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.on_gpu.kernels import kernel_rows
from benchmarks.on_gpu.limits import measure_limits
from benchmarks.on_gpu.made_up import SHAPES
from benchmarks.on_gpu.models import model_rows
from benchmarks.on_gpu.peers import peer_rows
from benchmarks.on_gpu.table import Row, as_json, as_markdown
from benchmarks.on_gpu.tests import run_gpu_tests

BUDGET_SECONDS = 570.0
"""What does not fit is left out, and said so."""


def main() -> int:
    """0; 1 where a test fails; 2 where there is no GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu-report"))
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="models to time")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("no NVIDIA GPU can be used here", file=sys.stderr)
        return 2
    begin = time.monotonic()
    failed = 0 if arguments.skip_tests else run_gpu_tests()
    limits = measure_limits()
    rows: list[Row] = []
    left_out: list[str] = []
    parts: list[tuple[str, Callable[[], list[Row]]]] = [("kernels", partial(kernel_rows, limits))]
    for shape in arguments.shapes.split(","):
        parts.append((f"coldpress {shape}", partial(model_rows, shape, limits)))
        parts.append((f"peers {shape}", partial(peer_rows, shape, limits)))
    for name, measure in parts:
        if time.monotonic() - begin > BUDGET_SECONDS:
            left_out.append(name)
            continue
        print(f"measuring: {name}", file=sys.stderr)
        try:
            rows += measure()
        except Exception as error:  # a figure that is missing must not take the others with it
            left_out.append(f"{name}: {type(error).__name__}: {error}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    report = as_json(limits, rows, left_out, failed, time.monotonic() - begin)
    (arguments.output / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")
    table = as_markdown(limits, rows, left_out)
    (arguments.output / "gpu.md").write_text(table)
    print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
