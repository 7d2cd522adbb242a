"""Kernels become machine code for a GPU that is not there; what the interpreter lets pass, the
compiler may not. `make test-kernels` compiles all of them for every architecture."""

import json
import os
import subprocess
import sys

import pytest

ONE_OF_EACH = (
    "_norm_kernel", "_weight_only_kernel", "_rotate_and_store_kernel", "_attend_kernel",
    "_merge_kernel", "_gated_rounded_kernel", "_sum_parts_kernel", "_choose_kernel", "_edit_kernel",
    "_hand_over_kernel",
)  # fmt: skip


@pytest.mark.timeout(600)
def test_a_decode_step_becomes_machine_code_for_hopper() -> None:
    """Of 4-bit weights under rows rounded to e4m3, which takes one of nearly every kernel."""
    command = [
        sys.executable, "-m", "benchmarks.on_gpu.compiling", "--arch=90", "--models=smollm2",
        "--schemes=w4a8-fp8", "--caches=int8", "--steps=1x1",
    ]  # fmt: skip
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(command, env=plain, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    refused = [each for each in found if each["refused"] is not None]
    assert ran.returncode == 0, refused or ran.stderr
    assert {each["kernel"] for each in found} == set(ONE_OF_EACH)
    assert all(each["registers"] > 0 for each in found)
