"""Checks and times everything that runs on a GPU, in one call of under ten minutes.

    python -m benchmarks.gpu [-o DIR] [--only GROUP,...] [--seconds 570]

First what the chip does in a plain copy and in plain products, of which all else is a fraction;
then the GPU tests, compiled; then the figures that matter most: decode of the 1.1B shape with 4-bit
weights, its kernel, attention over 8k context, FP8; then the 8B shape, 64 streams and prompts, and
transformers and torch's own int4 and FP8 products beside them. Weights are random.

Each group runs in a process of its own with a time of its own, so that a kernel that fails, hangs
or breaks the device costs its own figures alone. DIR/gpu.json and DIR/gpu.md are written after each
figure: whatever ends this early leaves what was measured. Compiling is not timed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.on_gpu.run import Group, command_of, run_groups
from benchmarks.on_gpu.table import Report, as_markdown

BUDGET_SECONDS = 570.0
"""What does not fit is left out, and said so."""
GROUPS = (
    Group("limits", 40),
    Group("tests", 150),
    Group("model:1.1B:w4a16", 60),
    Group("int4", 50),
    Group("attention", 45),
    Group("rounded", 40),
    Group("model:1.1B:fp8", 50),
    Group("model:8B:w4a16", 80),
    Group("model:8B:fp8", 80),
    Group("peers:1.1B", 90),
    Group("model:8B:bfloat16", 80),
    Group("peers:8B", 100),
    Group("model:1.1B:bfloat16", 50),
)
"""The most valuable first."""


def command(group: Group, report: Report) -> list[str]:
    """What runs a group."""
    if group.name == "tests":
        return [sys.executable, "-m", "benchmarks.on_gpu.tests"]
    return command_of(group, report)


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 where something failed or was left out; 2 where there is no GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu-report"))
    parser.add_argument("--only", help="groups beside the limits; e.g. int4,model:8B:w4a16")
    parser.add_argument("--seconds", type=float, default=BUDGET_SECONDS)
    options = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        print("no NVIDIA GPU can be used here", file=sys.stderr)
        return 2
    groups: Sequence[Group] = GROUPS
    if options.only is not None:
        wanted = {"limits", *options.only.split(",")}
        groups = [group for group in GROUPS if group.name in wanted]
    report = run_groups(groups, options.seconds, options.output, command)
    print(as_markdown(report))
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
