"""coldpress build: put a checkpoint into the container it travels in."""

from collections.abc import Sequence
from pathlib import Path

import click

from coldpress.console import Console
from coldpress.gates import judge_gates, parse_gates, require_held
from coldpress.junit import gate_cases, junit_file
from coldpress.options import (
    PATH,
    gate_option,
    gate_text_option,
    json_option,
    junit_option,
    pass_console,
)


@click.command("build")
@click.argument("checkpoint", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Directory to write.")
@click.option("--target", required=True, help="gguf or gguf:TYPE (such as gguf:q8_0).")
@click.option("--overwrite", is_flag=True, help="Replace the output directory if it exists.")
@gate_text_option
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
                on_progress=on_progress,
            )
        console.result(outcome, lambda: pairs_table(str(output), outcome))
        verdicts = judge_gates(wanted, outcome["evaluation"])
        cases += gate_cases(verdicts)
        require_held(verdicts)
