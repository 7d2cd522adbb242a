"""coldpress build: put a checkpoint into the container it travels in."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coldpress.console import Console
from coldpress.gates import parse_gates, record_verdicts, require_held
from coldpress.junit import gate_cases, junit_file
from coldpress.options import (
    PATH,
    cache_options,
    gate_option,
    gate_text_option,
    json_option,
    junit_option,
    pass_console,
)

if TYPE_CHECKING:
    from coldpress.baseline_cache import BaselineCache


@click.command("build")
@click.argument("checkpoint", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Directory to write.")
@click.option(
    "--target",
    required=True,
    help="gguf, onnx, or a type of these: gguf:q8_0, onnx:int4; tensorrt:sm89 for a GPU; triton "
    "packs a finished artifact for NVIDIA Triton.",
)
@click.option("--overwrite", is_flag=True, help="Replace the output directory if it exists.")
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
    gate_text: Path | None,
    cache: "BaselineCache | None",
    gates: Sequence[str],
    junit: Path | None,
) -> None:
    """Build an artifact from CHECKPOINT: the container, its tokenizer, and a manifest."""
    from coldpress.pressing import build
    from coldpress.tables import pairs_table
    from coldpress.texts import text_for_gates

    wanted = parse_gates(gates)
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
        verdicts = record_verdicts(wanted, outcome["evaluation"], outcome)
        console.result(outcome, lambda: pairs_table(str(output), outcome))
        cases += gate_cases(verdicts)
        require_held(verdicts)
