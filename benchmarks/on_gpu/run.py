"""Runs groups of figures one after the other, each in a process with a time of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Timer

from benchmarks.on_gpu.limits import Limits
from benchmarks.on_gpu.table import Report, Row


@dataclass(frozen=True)
class Group:
    """seconds: after which it is ended; what it has measured by then counts."""

    name: str
    seconds: float


def command_of(group: Group, report: Report) -> list[str]:
    """What measures a group."""
    told = [] if report.limits is None else [json.dumps(asdict(report.limits))]
    return [sys.executable, "-m", "benchmarks.on_gpu.group", group.name, *told]


def run_groups(
    groups: Sequence[Group],
    budget: float,
    directory: Path,
    command: Callable[[Group, Report], list[str]] = command_of,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """What could be measured in `budget` seconds; written to `directory` after each figure.

    Groups are started while there is time, and none runs past the budget.
    """
    report, begin = Report(), clock()
    for group in groups:
        left = budget - (clock() - begin)
        if left <= 0:
            report.failed.append(f"{group.name}: no time was left")
        elif group.name != "limits" and group.name != "tests" and report.limits is None:
            report.failed.append(f"{group.name}: there are no limits to compare with")
        else:
            _run(group, min(left, group.seconds), report, directory, command(group, report))
        report.seconds = round(clock() - begin, 1)
        report.write(directory)
    return report


def _run(
    group: Group, seconds: float, report: Report, directory: Path, command: Sequence[str]
) -> None:
    print(f"{group.name}: at most {seconds:.0f} s", file=sys.stderr)
    log = directory / f"{group.name.replace(':', '-')}.log"
    directory.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as said:
        # With whatever it starts itself, which would hold the device.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True
        )
    ended = Event()

    def end() -> None:
        ended.set()
        os.killpg(process.pid, signal.SIGKILL)

    late = Timer(seconds, end)
    late.start()
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            _note(line, report)
            report.write(directory)
    code = process.wait()
    late.cancel()
    if ended.is_set():
        report.failed.append(f"{group.name}: was ended after {seconds:.0f} s")
    elif code:
        report.failed.append(f"{group.name}: ended with {code}{_last_words(log)}")


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f": {lines[-1].strip()}" if lines else ""


def _note(line: str, report: Report) -> None:
    """Lines that are no JSON are what libraries print."""
    try:
        said = json.loads(line)
    except ValueError:
        return
    if not isinstance(said, dict):
        return
    if "limits" in said:
        report.limits = Limits(**said["limits"])
    elif "row" in said:
        report.rows.append(Row(**said["row"]))
    elif "failed" in said:
        report.failed.append(said["failed"])
