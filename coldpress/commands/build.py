"""coldpress build: put a checkpoint into the container it travels in."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coldpress.console import Console
from coldpress.gates import parse_gates, record_verdicts, require_held
from coldpress.junit import gate_cases, junit_file
from coldpress.options import (
    ARTIFACT,
    PATH,
    cache_options,
    gate_option,
    gate_text_option,
    json_option,
    junit_option,
    pass_console,
)
from quant.format.errors import CheckFailedError, InputError

if TYPE_CHECKING:
    from coldpress.baseline_cache import BaselineCache

SHOWN = 3
"""Failures of a proof that the closing sentence names; `coldpress verify` tells all of them."""


@click.command("build")
@click.argument("checkpoint", type=ARTIFACT)
@click.option("-o", "--output", type=PATH, required=True, help="Directory to write.")
@click.option(
    "--target",
    required=True,
    help="gguf, onnx, or a type of these: gguf:q8_0, onnx:int4; tensorrt:sm89 for a GPU; triton "
    "packs a finished artifact for NVIDIA Triton.",
)
@click.option("--overwrite", is_flag=True, help="Replace the output directory if it exists.")
@click.option(
    "--verify", "prove", is_flag=True, help="Then verify it, and keep the proof as parity.json."
)
@gate_text_option
@cache_options
@gate_option
@junit_option
@json_option
@pass_console
def command(
    console: Console,
    checkpoint: Path,
    output: Path,
    target: str,
    overwrite: bool,
    prove: bool,
    gate_text: Path | None,
    cache: "BaselineCache | None",
    gates: Sequence[str],
    junit: Path | None,
) -> None:
    """Build an artifact from CHECKPOINT, a Hugging Face one or a GGUF file: the container, its
    tokenizer, and a manifest."""
    from coldpress.pressing import build
    from coldpress.tables import pairs_table
    from coldpress.targets import parse_target
    from coldpress.texts import text_for_gates

    wanted = parse_gates(gates)
    if prove and parse_target(target).kind == "triton":
        raise InputError("a Triton repository packs a finished artifact; verify that one instead")
    text = text_for_gates(gate_text) if wanted else None
    with junit_file(junit, "build", output) as cases:
        with console.progress("building") as on_progress:
            outcome = build(
                checkpoint,
                output,
                target=target,
                overwrite=overwrite,
                evaluation_text=text,
                cache=cache,
                on_progress=on_progress,
            )
        if prove:
            outcome["parity"] = _proven(console, output, checkpoint)
        verdicts = record_verdicts(wanted, outcome["evaluation"], outcome)
        console.result(outcome, lambda: pairs_table(str(output), outcome))
        if prove and not outcome["parity"]["passed"]:
            problems = "; ".join(outcome["parity"]["failures"])
            raise CheckFailedError(f"{output} was built, but did not pass: {problems}")
        cases += gate_cases(verdicts)
        require_held(verdicts)


def _proven(console: Console, output: Path, checkpoint: Path) -> dict[str, Any]:
    """What `coldpress verify --record` finds, in short."""
    from coldpress.proving import verify

    with console.progress("verifying") as on_progress:
        report = verify(output, against=checkpoint, record=True, on_progress=on_progress)
    return {
        "passed": report.passed,
        "tensors": report.counts,
        "max_difference": None if report.logits is None else report.logits.max_difference,
        "failures": report.failures[:SHOWN],
    }
