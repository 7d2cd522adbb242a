"""The GPU tests, compiled, each file in a process of its own; beside them, in processes without a
GPU, the kernels that are timed afterwards are compiled into Triton's cache.

Writes lines of JSON (see `group`): each failure as soon as it is known, and what passed of a file.
"""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock

KERNELS = Path("tests/runtime/kernels/triton")
SERVED = "tests/runtime/executors/test_cuda_served.py"
OTHERS = ("tests/runtime/executors/test_cuda_executor.py",)
TIMED = (("1.1B", "w4a16-128"), ("8B", "w4a16-128"), ("1.1B", "fp8"), ("8B", "fp8"))
"""Models and schemes whose kernels are timed."""
STEPS = "1x1,64x1,1x2048"

FAILED = re.compile(r"(\S+::\S.*?) (?:FAILED|ERROR)\b")
PASSED = re.compile(r"(\S+::\S.*?) PASSED\b")

_printing = Lock()


def test_command(files: str) -> list[str]:
    """Warnings of another machine's libraries are no failures here."""
    return [
        sys.executable, "-m", "pytest", "-q", "-rN", "--tb=line", "-v", "-W", "default",
        "-p", "no:cacheprovider", "-m", "not demo_model", files,
    ]  # fmt: skip


def compile_command(model: str, scheme: str, arch: int) -> list[str]:
    """One process, whose kernels are found in the cache afterwards."""
    module = "benchmarks.on_gpu.compiling"
    caches = "bfloat16" if model == "1.1B" else "bfloat16,int8,e4m3"
    return [
        sys.executable, "-m", module, f"--arch={arch}", f"--models={model}",
        f"--schemes={scheme}", f"--caches={caches}", f"--steps={STEPS}",
    ]  # fmt: skip


def main() -> int:
    """0 if all pass, else 1."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    files = [SERVED, *OTHERS, *sorted(map(str, KERNELS.glob("test_*.py")))]
    works = [
        *(partial(compile_one, model, scheme, 10 * major + minor) for model, scheme in TIMED),
        *(partial(run_file, file) for file in files),
    ]
    with ThreadPoolExecutor(max(4, os.cpu_count() or 1)) as threads:
        codes = [work.result() for work in [threads.submit(work) for work in works]]
    return 1 if any(codes) else 0


def run_file(file: str) -> int:
    """pytest's exit code."""
    passed = 0
    tests = subprocess.Popen(test_command(file), stdout=subprocess.PIPE, text=True)
    assert tests.stdout is not None
    for line in tests.stdout:
        passed += PASSED.match(line) is not None
        with _printing:
            print(line, end="", file=sys.stderr)
            if (name := failed_test(line)) is not None:
                print(json.dumps({"failed": f"test {name}"}), flush=True)
    code = tests.wait()
    row = {"what": f"compiled: {file}", "value": passed, "unit": "tests passed"}
    with _printing:
        print(json.dumps({"row": row}), flush=True)
    return code


def compile_one(model: str, scheme: str, arch: int) -> int:
    """0, whatever could be compiled; what could not is told where it is timed."""
    command = compile_command(model, scheme, arch)
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run(command, env=plain, stdout=subprocess.DEVNULL, check=False)
    return 0


def failed_test(line: str) -> str | None:
    """The test that a line of `pytest -v` says has failed."""
    found = FAILED.match(line)
    return None if found is None else found.group(1)


if __name__ == "__main__":
    sys.exit(main())
