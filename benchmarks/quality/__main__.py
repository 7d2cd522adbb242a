"""python -m benchmarks.quality: see the package's docstring for what is measured."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from benchmarks.quality import report
from benchmarks.quality.contest import Contest, Files, Row, StepError
from benchmarks.quality.contestants import (
    Contestant,
    choose,
    default_contestants,
    parse_given,
    parse_recipe,
)
from benchmarks.quality.texts import Sizes, prepare
from benchmarks.quality.workshop import (
    Made,
    Tool,
    Workshop,
    bind_to_processors,
    given,
    inspect_tool,
)

QUICK = Sizes(samples=8, tokens=128, windows=1, window=1024)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.quality")
    made.add_argument("--model", type=Path, required=True, help="float checkpoint directory")
    made.add_argument("--text", type=Path, required=True, help="calibrate on half, score the other")
    made.add_argument("--work", type=Path, required=True, help="where everything is kept")
    made.add_argument("--coldpress", default=sys.executable, metavar="PYTHON")
    made.add_argument("--llm-compressor", metavar="PYTHON")
    made.add_argument("--llama-cpp", metavar="PYTHON")
    made.add_argument("--seeds", type=int, nargs="*", default=[0], help="rescale by each in turn")
    made.add_argument("--as-is", action="store_true", help="do not rescale the model")
    made.add_argument("--quick", action="store_true", help=f"does it work at all: {QUICK}")
    made.add_argument("--windows", type=int, help="of 1024 tokens to score; 40 by default")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="rows by name")
    made.add_argument("--recipe", action="append", default=[], metavar="'NAME KEY=VALUE ...'")
    made.add_argument("--given", action="append", default=[], metavar="NAME=PATH")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    # So that what is running ends with us; a kill -9 leaves it behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        contestants = find_contestants(args)
        tools = find_tools(args)
        bind_to_processors(args.threads)
        workshop = Workshop(args.work.resolve(), args.threads)
        sizes = sizes_of(args)
        files = write_files(args.text, args.model, workshop.root, sizes)
        models = find_models(args, tools["transformers"], workshop)
    except (ValueError, StepError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    settings = {
        "model": str(args.model),
        "text_sha256": given(args.text).digest,
        "calibration_sha256": files.calibration.digest,
        "sizes": asdict(sizes),
        "threads": args.threads,
        "tools": {name: dict(tool.versions) for name, tool in tools.items()},
    }
    rows: dict[str, list[Row]] = {}
    for name, model in models.items():
        rows[name] = []
        contest = Contest(name, model, files, tools, workshop)
        for contestant in contestants:
            rows[name].append(compete(contest, contestant))
            write_report(workshop.root, rows, settings)
    print((workshop.root / "quality.md").read_text("utf-8"))
    return 1 if any(row.problem for found in rows.values() for row in found) else 0


def find_contestants(args: argparse.Namespace) -> list[Contestant]:
    """Each row once, also where it was chosen and asked for. Raises ValueError."""
    chosen = choose(default_contestants(), args.only)
    asked = [*map(parse_recipe, args.recipe), *map(parse_given, args.given)]
    return list({one.name: one for one in (*chosen, *asked)}.values())


def sizes_of(args: argparse.Namespace) -> Sizes:
    sizes = QUICK if args.quick else Sizes()
    return sizes if args.windows is None else replace(sizes, windows=args.windows)


def find_tools(args: argparse.Namespace) -> dict[str, Tool]:
    """What runs what. The harness's own processes do not depend on coldpress's sources."""
    pythons = {
        "coldpress": args.coldpress,
        "llm-compressor": args.llm_compressor,
        "llama.cpp": args.llama_cpp,
    }
    tools = {name: inspect_tool(python) for name, python in pythons.items() if python}
    own = inspect_tool(sys.executable)
    versions = {name: told for name, told in own.versions.items() if "coldpress" not in name}
    return {**tools, "transformers": Tool(own.python, versions)}


def write_files(text: Path, model: Path, root: Path, sizes: Sizes) -> Files:
    """The tokens that everyone gets. Raises ValueError when the text is too short."""
    from transformers import AutoTokenizer

    material = prepare(text.read_text("utf-8"), AutoTokenizer.from_pretrained(model), sizes)
    digits = "-".join(map(str, asdict(sizes).values()))
    folder = root / f"tokens-{given(text).digest[:8]}-{given(model).digest[:8]}-{digits}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "calibration.txt").write_text(material.text, "utf-8")
    np.save(folder / "calibration.npy", material.calibration)
    np.save(folder / "scored.npy", material.scored)
    names = ("calibration.txt", "calibration.npy", "scored.npy")
    return Files(*(given(folder / name) for name in names))


def find_models(args: argparse.Namespace, tool: Tool, workshop: Workshop) -> dict[str, Made]:
    """The models to press, by name. Raises StepError when one cannot be rescaled."""
    if args.as_is:
        return {"as it is": given(args.model)}
    models = {}
    for seed in args.seeds:
        done = workshop.run(f"seed {seed}", tool, "rescale", [given(args.model), str(seed)])
        if done.problem is not None:
            raise StepError(done.problem)
        models[f"seed {seed}"] = done.made()
    return models


def compete(contest: Contest, contestant: Contestant) -> Row:
    start = time.monotonic()
    row = contest.row(contestant)
    came = row.problem or f"KLD {row.summary.kld.mean:.4g}" if row.summary else row.problem
    told = f"{contest.name}: {contestant.name}: {came} ({time.monotonic() - start:.0f} s)"
    print(told, file=sys.stderr, flush=True)
    return row


def write_report(
    root: Path, rows: Mapping[str, Sequence[Row]], settings: Mapping[str, object]
) -> None:
    """Anew after each row, so that an interrupted run leaves what it came to."""
    (root / "quality.json").write_text(json.dumps(report.as_json(rows, settings), indent=1))
    (root / "quality.md").write_text(report.as_markdown(rows), "utf-8")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
