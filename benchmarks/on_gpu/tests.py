"""The GPU tests, compiled: which of them fail, as lines of JSON (see `group`)."""

import json
import re
import subprocess
import sys

TESTS = ("tests/runtime/kernels/triton", "tests/runtime/executors/test_cuda_executor.py")

FAILED = re.compile(r"(\S+::\S.*?) (?:FAILED|ERROR)\b")


def main() -> int:
    """0 if all pass, else pytest's exit code; each failure is told as soon as it is known."""
    command = [sys.executable, "-m", "pytest", "-q", "-rN", "--tb=line", "-v", *TESTS]
    tests = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert tests.stdout is not None
    for line in tests.stdout:
        print(line, end="", file=sys.stderr)
        if (name := failed_test(line)) is not None:
            print(json.dumps({"failed": f"test {name}"}), flush=True)
    return tests.wait()


def failed_test(line: str) -> str | None:
    """The test that a line of `pytest -v` says has failed."""
    found = FAILED.match(line)
    return None if found is None else found.group(1)


if __name__ == "__main__":
    sys.exit(main())
