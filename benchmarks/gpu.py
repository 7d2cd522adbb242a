"""Checks and times everything that runs on a GPU, in one call of under ten minutes.

    python -m benchmarks.gpu [-o DIR] [--only GROUP,...] [--seconds 570]
    python -m benchmarks.gpu --dry-run

First what the chip does in a plain copy and in plain products, of which all else is a fraction;
then the GPU tests, compiled, and beside them the kernels of what is timed; then the figures that
matter most: decode of the 1.1B shape with 4-bit weights, its kernel, attention over 8k context,
FP8; then the 8B shape, 64 streams and prompts, and transformers with bfloat16, a static cache and
torch.compile, and with torch's own int4 and FP8 products in its linears. Weights are random.

Each group runs in a process of its own with a time of its own, so that a kernel that fails, hangs
or breaks the device costs its own figures alone. DIR/gpu.json and DIR/gpu.md are written after each
figure: whatever ends this early leaves what was measured; DIR/GROUP.log has what it said. Compiling
is not timed. A dry run has tiny sizes and Triton's interpreter in place of a GPU: its figures mean
nothing, but all the code has run.
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
    Group("int4", 45),
    Group("attention", 40),
    Group("rounded", 40),
    Group("model:1.1B:fp8", 45),
    Group("model:8B:w4a16", 70),
    Group("model:8B:fp8", 70),
    Group("peers:1.1B:bfloat16", 80),
    Group("peers:8B:bfloat16", 100),
    Group("model:8B:bfloat16", 70),
    Group("peers:1.1B:int4", 70),
    Group("peers:1.1B:fp8", 70),
    Group("sampling", 25),
    Group("model:1.1B:bfloat16", 45),
    Group("peers:8B:int4", 100),
    Group("peers:8B:fp8", 100),
)
"""The most valuable first. Times are limits: most groups end well before."""
ON_GPU_ALONE = ("tests",)
"""`make test` runs these in the interpreter."""


def command(group: Group, report: Report) -> list[str]:
    """What runs a group."""
    if group.name == "tests":
        return [sys.executable, "-m", "benchmarks.on_gpu.tests"]
    return command_of(group, report)


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 where something failed or was left out; 2 without a GPU, or for a dry run with one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu-report"))
    parser.add_argument("--only", help="groups beside the limits; e.g. int4,model:8B:w4a16")
    parser.add_argument("--seconds", type=float, default=BUDGET_SECONDS)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    import torch

    if torch.cuda.is_available() == options.dry_run:
        told = "a dry run is for where there is no GPU" if options.dry_run else "no NVIDIA GPU here"
        print(told, file=sys.stderr)
        return 2
    groups: Sequence[Group] = GROUPS
    if options.dry_run:
        groups = [group for group in groups if group.name not in ON_GPU_ALONE]
    if options.only is not None:
        wanted = {"limits", *options.only.split(",")}
        groups = [group for group in groups if group.name in wanted]
    report = run_groups(groups, options.seconds, options.output, command)
    print(as_markdown(report))
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
