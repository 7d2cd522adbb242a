"""coldpress and its peers in turn, several rounds, as ratios with their spread.

    python -m benchmarks.compare MODEL -o DIR \
        --peer 'llama.cpp=LLAMA/bin/python -m benchmarks.speed.llama_cpp_cells FILE'

A peer is any command that prints one JSON line of cells in tokens per second (see
`benchmarks.speed`), in an environment of its own. Figures drift from hour to hour, so every round
runs all of them one after another, and what is reported is the median over rounds of the ratio
within a round. Writes DIR/compare.json and DIR/compare.md after each round, so that a run which is
cut off leaves its whole rounds.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.speed.cells import CELLS, CELLS_VARIABLE
from coldpress.progress import ProgressReporter
from quant.format.staging import write_file_atomically

OURS = "coldpress"
Cells = Mapping[str, float]
Rounds = Sequence[Mapping[str, Cells]]
"""For each round, by contender."""


@dataclass(frozen=True)
class Ratio:
    """coldpress over a peer in one cell: the median over rounds, the lowest and the highest."""

    median: float
    lowest: float
    highest: float


def parse_peer(text: str) -> tuple[str, list[str]]:
    name, equals, command = text.partition("=")
    if not equals or not name or not command.strip():
        raise ValueError(f"'{text}' is not NAME=COMMAND")
    return name, shlex.split(command)


def run_cells(command: Sequence[str], cells: Sequence[str] = CELLS) -> dict[str, float]:
    """The numbers of the last JSON object that is printed on a line of its own; some tools have
    words of farewell. Raises ValueError where there is none."""
    environment = {**os.environ, CELLS_VARIABLE: ",".join(cells)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        problem = done.stderr.strip().splitlines()[-3:]
        raise ValueError(f"{shlex.join(command)} ended with {done.returncode}: {' '.join(problem)}")
    found = json.loads(lines[-1])
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def ratios(rounds: Rounds, peer: str) -> dict[str, Ratio]:
    """For each cell that both have in every round."""
    found = {}
    for cell in rounds[0][OURS]:
        if all(cell in each[OURS] and cell in each[peer] for each in rounds):
            values = [each[OURS][cell] / each[peer][cell] for each in rounds]
            found[cell] = Ratio(median(values), min(values), max(values))
    return found


def medians(rounds: Rounds, contender: str) -> dict[str, float]:
    cells = rounds[0][contender]
    return {cell: median(each[contender][cell] for each in rounds) for cell in cells}


def markdown(rounds: Rounds) -> str:
    """Tokens per second of all, and behind each peer's the ratio of ours to it."""
    names = list(rounds[0])
    speeds = {name: medians(rounds, name) for name in names}
    compared = {name: ratios(rounds, name) for name in names if name != OURS}
    lines = [
        f"| tokens/s, median of {len(rounds)} | {' | '.join(names)} |",
        f"| --- |{' ---: |' * len(names)}",
    ]
    for cell in speeds[OURS]:
        told = [_told(speeds[name].get(cell), compared.get(name, {}).get(cell)) for name in names]
        lines.append(f"| {cell} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def _told(speed: float | None, ratio: Ratio | None) -> str:
    if speed is None:
        return ""
    if ratio is None:
        return f"{speed:.0f}"
    return f"{speed:.0f} ({ratio.median:.2f} x, {ratio.lowest:.2f} to {ratio.highest:.2f})"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.compare")
    made.add_argument(
        "model", help="what coldpress serves: a checkpoint, an artifact or a GGUF file"
    )
    made.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--threads", type=int, default=2, help="of coldpress alone")
    made.add_argument("--kv-cache-type", default="auto", help="of coldpress alone")
    made.add_argument(
        "--cells",
        type=lambda text: text.split(","),
        default=list(CELLS),
        metavar="NAME,NAME,...",
        help=f"of {', '.join(CELLS)}; all by default",
    )
    made.add_argument("-o", "--output", type=Path, required=True)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        unknown = set(args.cells) - set(CELLS)
        if unknown:
            raise ValueError(f"there are no cells {', '.join(sorted(unknown))}")
        contenders = {OURS: ours(args), **dict(parse_peer(text) for text in args.peer)}
        rounds: list[dict[str, dict[str, float]]] = []
        for each in run_rounds(contenders, args.rounds, args.cells):
            rounds.append(each)
            write(args.output, rounds, args.threads, args.kv_cache_type)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(markdown(rounds))
    return 0


def ours(args: argparse.Namespace) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.speed.coldpress_cells", args.model]
    return [*command, "--threads", str(args.threads), "--kv-cache-type", args.kv_cache_type]


def run_rounds(
    contenders: Mapping[str, Sequence[str]], rounds: int, cells: Sequence[str]
) -> Iterator[dict[str, dict[str, float]]]:
    """The cells of all contenders, round by round. Raises ValueError when one of them fails."""
    progress = ProgressReporter("compare")
    total = rounds * len(contenders)
    try:
        for number in range(rounds):
            found = {}
            for place, (name, command) in enumerate(contenders.items()):
                done = number * len(contenders) + place
                progress(done, total, f"{name}, round {number + 1}")
                found[name] = run_cells(command, cells)
            yield found
    finally:
        progress.close()


def write(directory: Path, rounds: Rounds, threads: int, kv_cache_type: str) -> None:
    """Both files, each replaced as a whole."""
    directory.mkdir(parents=True, exist_ok=True)
    figures = {
        "threads": threads,
        "kv_cache_type": kv_cache_type,
        "load": os.getloadavg()[0],
        "rounds": rounds,
        "ratios": {
            name: {cell: vars(ratio) for cell, ratio in ratios(rounds, name).items()}
            for name in rounds[0]
            if name != OURS
        },
    }
    write_file_atomically(
        directory / "compare.json", (json.dumps(figures, indent=1) + "\n").encode()
    )
    write_file_atomically(directory / "compare.md", markdown(rounds).encode())


if __name__ == "__main__":
    sys.exit(main())
