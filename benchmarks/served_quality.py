"""How far each contender of `benchmarks.compare` is from the float model, as it serves.

    python -m benchmarks.served_quality CHECKPOINT TEXT -o DIR \
        --model 'coldpress=PYTHON read_coldpress FILE' \
        --model 'OpenVINO=PYTHON read_openvino DIRECTORY'

Each model is NAME=PYTHON READER PATH, where READER is a module of `benchmarks.quality.steps` that
runs in that environment. Windows come from the second half of TEXT, whose first half nobody but
calibration reads. Writes DIR/served_quality.json and .md.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.compare import parse_peer
from benchmarks.quality.scores import Summary, summarize
from benchmarks.quality.texts import encode, into_windows, start_tokens
from quant.format.staging import write_file_atomically

STEPS = "benchmarks.quality.steps"


def run(command: Sequence[str]) -> None:
    """Raises ValueError with the last lines of a command that fails."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        problem = " ".join(done.stderr.strip().splitlines()[-3:])
        raise ValueError(f"{shlex.join(command)} ended with {done.returncode}: {problem}")


def read(name: str, words: Sequence[str], directory: Path, threads: int) -> Summary:
    """One model's scores against the baseline in `directory`."""
    if len(words) != 3:
        raise ValueError(f"'{name}={shlex.join(words)}' is not NAME=PYTHON READER PATH")
    python, reader, model = words
    out = directory / name
    out.mkdir(exist_ok=True)
    given = [str(out), model, str(directory), str(directory / "scored.npy"), str(threads)]
    run([python, "-m", f"{STEPS}.{reader}", *given])
    return summarize(np.load(out / "scores.npy"))


def markdown(found: Mapping[str, Summary]) -> str:
    lines = ["| | perplexity | KLD | top-1 |", "| --- | ---: | ---: | ---: |"]
    for name, each in found.items():
        kld = f"{each.kld.mean:.4f} +- {each.kld.se:.4f}"
        lines.append(f"| {name} | {each.perplexity:.3f} | {kld} | {100 * each.top1:.1f} % |")
    return "\n".join(lines) + "\n"


def prepare(args: argparse.Namespace) -> None:
    """The windows and the float model's predictions of them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    text = args.text.read_text("utf-8")
    ids = encode(tokenizer, text[len(text) // 2 :][: 12 * args.windows * args.window])
    windows = into_windows(ids, start_tokens(tokenizer), args.windows, args.window)
    args.output.mkdir(parents=True, exist_ok=True)
    np.save(args.output / "scored.npy", windows)
    given = [str(args.output), str(args.checkpoint), str(args.output / "scored.npy")]
    run([sys.executable, "-m", f"{STEPS}.baseline", *given])


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.served_quality")
    made.add_argument("checkpoint", type=Path)
    made.add_argument("text", type=Path)
    made.add_argument("--model", action="append", required=True, metavar="NAME=PYTHON READER PATH")
    made.add_argument("--windows", type=int, default=8)
    made.add_argument("--window", type=int, default=256)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("-o", "--output", type=Path, required=True)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    found: dict[str, Summary] = {}
    try:
        models = dict(parse_peer(text) for text in args.model)
        prepare(args)
        for name, words in models.items():
            print(name, file=sys.stderr)
            found[name] = read(name, words, args.output, args.threads)
            figures = json.dumps({name: asdict(each) for name, each in found.items()}, indent=1)
            write_file_atomically(args.output / "served_quality.json", figures.encode())
            write_file_atomically(args.output / "served_quality.md", markdown(found).encode())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
