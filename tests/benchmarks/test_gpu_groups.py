"""Every group of figures that a GPU is timed with runs here too: tiny, and in the interpreter."""

from dataclasses import asdict
from typing import Any

import pytest

from tests.runtime.gpu import COMPILED

# The device is chosen before kernels are defined.
from benchmarks import gpu  # isort: skip
from benchmarks.on_gpu.group import lines_of_group  # isort: skip
from benchmarks.on_gpu.limits import Limits  # isort: skip
from benchmarks.on_gpu.table import Row  # isort: skip
from benchmarks.on_gpu.tests import compile_command, test_command as command_of_tests  # isort: skip

pytestmark = pytest.mark.skipif(COMPILED, reason="on a GPU the script itself runs them")

TOLD = asdict(Limits("a chip", 1e9, 1e9, 1e9, 1e9))
ROUNDED = 0.06
"""Between codes of a few bits, of the largest number of a result; kernels are far nearer."""
# One shape stands for both, which differ in size alone.
GROUPS = [
    group.name
    for group in gpu.GROUPS
    if group.name not in gpu.ON_GPU_ALONE and not group.name.startswith(("peers:8B", "model:8B"))
]


@pytest.mark.parametrize("name", GROUPS)
# transformers and torch.compile warn of what is theirs.
@pytest.mark.filterwarnings("ignore")
def test_a_group_runs_and_its_results_are_right(name: str) -> None:
    lines = list(lines_of_group(name, TOLD))
    assert [line["failed"] for line in lines if "failed" in line] == []
    rows = [Row(**line["row"]) for line in lines if "row" in line]
    assert all(row.value > 0 for row in rows)
    assert all(row.difference is None or row.difference <= ROUNDED for row in rows)
    if name == "limits":
        assert [*lines[-1]["limits"]] == [*TOLD]
    elif not name.startswith("peers:1.1B:") or name.endswith("bfloat16"):
        assert rows, "torch's own int4 and FP8 products are those of a GPU alone"


def test_commands_name_what_exists() -> None:
    command: list[Any] = command_of_tests("tests/x.py")
    assert command[1:3] == ["-m", "pytest"] and command[-1] == "tests/x.py"
    assert "--arch=90" in compile_command("8B", "fp8", 90)
