"""How fast one stream decodes while another process keeps one of the cores busy.

`python -m benchmarks.shared_core MODEL [--rounds 5] [--json]`

The engine may use all cores that this process may use, with a thread for each. The other process is
pinned to the last of them and multiplies integers without end; between its turns it is stopped, not
ended, so that both kinds of round differ in nothing else. Rounds alternate, and the figure is the
median of the ratios of neighbours. Both processes have the same priority. Run it on a machine
that does nothing else.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from coldpress.loading import Machine, open_artifact, open_executor
from runtime.bench import measure
from runtime.engine.batch import Executor

PROMPT, OUTPUT = 16, 96
_BUSY = "x = 1\nwhile True: x = x * 48271 % 2147483647"


@contextmanager
def busy_core(core: int) -> Iterator[int]:
    """The id of a process that keeps `core` busy, stopped at first."""
    with subprocess.Popen([sys.executable, "-S", "-c", _BUSY]) as process:
        try:
            os.sched_setaffinity(process.pid, {core})
            os.kill(process.pid, signal.SIGSTOP)
            yield process.pid
        finally:
            process.kill()


def tokens_per_second(executor: Executor) -> float:
    run = measure(executor, 1, prompt_tokens=PROMPT, output_tokens=OUTPUT)
    return run.decode_tokens_per_second


def rates(executor: Executor, other: int, rounds: int) -> list[tuple[float, float]]:
    """Tokens a second, alone and beside the process `other`, of each round."""
    tokens_per_second(executor)
    found = []
    for _ in range(rounds):
        alone = tokens_per_second(executor)
        os.kill(other, signal.SIGCONT)
        try:
            found.append((alone, tokens_per_second(executor)))
        finally:
            os.kill(other, signal.SIGSTOP)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("this measures two cores or more; the process may use one")
    model, _ = open_artifact(asked.model)
    executor = open_executor(model, Machine(threads=len(cores)), tokens=PROMPT + OUTPUT)
    with busy_core(cores[-1]) as other:
        found = rates(executor, other, asked.rounds)
    ratios = [beside / alone for alone, beside in found]
    if asked.json:
        print(json.dumps({"cores": cores, "rounds": found, "share": median(ratios)}))
        return
    for alone, beside in found:
        print(f"{alone:7.1f} tokens/s alone, {beside:7.1f} beside a busy core")
    print(f"{median(ratios):.0%} ({min(ratios):.0%} to {max(ratios):.0%})")


if __name__ == "__main__":
    main()
