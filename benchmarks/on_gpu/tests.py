"""The GPU tests, compiled, in a process of their own."""

import subprocess
import sys

TESTS = ("tests/runtime/kernels/triton", "tests/runtime/executors/test_cuda_executor.py")
LIMIT_SECONDS = 240


def run_gpu_tests() -> int:
    """0 if all pass; pytest's exit code, or 1 where they take too long."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", *TESTS]
    try:
        return subprocess.run(command, timeout=LIMIT_SECONDS, check=False).returncode
    except subprocess.TimeoutExpired:
        print(f"the tests took more than {LIMIT_SECONDS} s", file=sys.stderr)
        return 1
