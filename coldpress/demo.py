"""The demo: one real model from the package index to an answered request, in one table.

Nothing here is special to it: every step is the same call that the commands make.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.benching import bench
from coldpress.console import Console
from coldpress.demo_model import demo_checkpoint
from coldpress.evaluation import evaluate_files, sizes
from coldpress.pressing import build, quantize
from coldpress.proving import verify
from coldpress.texts import builtin_text
from quant.format.errors import CheckFailedError, ColdpressError, MissingExtraError

QUESTION = "What is the capital of France?"
EXPECTED = "Paris"
RECIPE = "w4a16"
RECIPE_CHANGES = ("calibration.samples=64", "calibration.tokens=128")
"""Enough for a model this small. Short samples are quicker to write: all grow in the same steps."""
WINDOW = 512
EVALUATION_TOKENS = 8 * WINDOW
START_SECONDS = 60


@dataclass(frozen=True)
class Row:
    """One line of the table. Distances are to the first line's model."""

    artifact: str
    bytes: int
    bits_per_weight: float
    perplexity: float
    kld: float | None
    top1: float | None
    tokens_per_second: float


@dataclass(frozen=True)
class Outcome:
    """Everything that the demo shows."""

    rows: tuple[Row, ...]
    question: str
    answer: str
    seconds: dict[str, float]
    directory: str


class Stopwatch:
    """Tells what is going on, and how long it took."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, what: str) -> Iterator[Callable[[int, int, str], None]]:
        self._console.note(f"{what} ...")
        start = time.perf_counter()
        with self._console.progress(what) as on_progress:
            yield on_progress
        self.seconds[what] = time.perf_counter() - start
        self._console.note(f"{what}: {self.seconds[what]:.1f} s")


def run_demo(console: Console, directory: Path) -> Outcome:
    """Press, prove, measure, ask. Raises CheckFailedError when the answer or a check is wrong."""
    watch = Stopwatch(console)
    with watch.step("getting the model"):
        original = demo_checkpoint(note=console.note)
    checkpoint, artifact = directory / "checkpoint", directory / "gguf"
    with watch.step("quantizing") as on_progress:
        quantize(
            original,
            checkpoint,
            recipe=RECIPE,
            overrides=RECIPE_CHANGES,
            calibration="self",
            overwrite=True,
            on_progress=on_progress,
        )
    with watch.step("building") as on_progress:
        build(checkpoint, artifact, target="gguf", overwrite=True, on_progress=on_progress)
    with watch.step("verifying") as on_progress:
        report = verify(artifact, against=checkpoint, on_progress=on_progress)
        if not report.passed:
            raise CheckFailedError(f"{artifact} did not pass: {'; '.join(report.failures)}")
    with watch.step("evaluating"):
        rows = _rows(original, checkpoint, artifact)
    with watch.step("asking"):
        answer = _ask(artifact, console)
    check_outcome(answer, rows)
    return Outcome(rows, QUESTION, answer, watch.seconds, str(directory))


def _rows(original: Path, checkpoint: Path, artifact: Path) -> tuple[Row, ...]:
    pressed = [
        _pressed_row("int4 checkpoint", checkpoint, original),
        _pressed_row("the same as GGUF", artifact, original),
    ]
    size, bits = sizes(original)
    row = Row("original, bfloat16", size, bits, pressed[0][1], None, None, _decode_speed(original))
    return (row, *(row for row, _ in pressed))


def _pressed_row(name: str, path: Path, original: Path) -> tuple[Row, float]:
    """The row of a pressed model, and the perplexity of the original on the same text."""
    figures = evaluate_files(
        path, builtin_text(), baseline=original, window=WINDOW, max_tokens=EVALUATION_TOKENS
    )
    row = Row(
        artifact=name,
        bytes=figures["bytes"],
        bits_per_weight=figures["bits_per_weight"],
        perplexity=figures["perplexity"],
        kld=figures["kld"]["mean"],
        top1=figures["top1"]["mean"],
        tokens_per_second=_decode_speed(path),
    )
    return row, figures["baseline_perplexity"]


def _decode_speed(path: Path) -> float:
    """Tokens per second of one stream."""
    figures = bench(path, concurrency=[1], prompt_tokens=32, output_tokens=32)
    return float(figures["runs"][0].decode_tokens_per_second)


def _ask(artifact: Path, console: Console) -> str:
    """The answer of `coldpress serve`, streamed through the openai client."""
    try:
        import openai
    except ImportError as error:
        raise MissingExtraError("the demo's question", "openai", "dev") from error
    with serving(artifact) as ready:
        client = openai.OpenAI(base_url=f"{ready['url']}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(
            model=ready["model"],
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0.0,
            max_tokens=64,
            stream=True,
        )
        parts = [part.choices[0].delta.content or "" for part in stream if part.choices]
        client.close()
    return "".join(parts).strip()


@contextmanager
def serving(artifact: Path) -> Iterator[dict[str, Any]]:
    """`coldpress serve` in a process of its own on a free port; yields what it says when ready."""
    command = [sys.executable, "-m", "coldpress", "--json", "serve", str(artifact), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise ColdpressError(f"the server ended with code {process.wait()} before it answered")
        yield json.loads(line)
    finally:
        process.terminate()
        try:
            process.wait(timeout=START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def check_outcome(answer: str, rows: tuple[Row, ...]) -> None:
    """A demo that only looks right is worth nothing."""
    if EXPECTED not in answer:
        raise CheckFailedError(f"the answer to '{QUESTION}' should name {EXPECTED}: '{answer}'")
    original, *pressed = rows
    for row in pressed:
        if row.bytes >= original.bytes:
            raise CheckFailedError(f"{row.artifact} is not smaller than the original")
        if row.kld is None or not row.kld < 1.0:
            raise CheckFailedError(f"{row.artifact} diverges from the original: KLD {row.kld}")
