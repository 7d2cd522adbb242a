"""coldpress build: put a checkpoint into the container it travels in."""

from pathlib import Path

import click

from coldpress.console import Console
from coldpress.options import PATH, json_option, pass_console


@click.command("build")
@click.argument("checkpoint", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Directory to write.")
@click.option("--target", required=True, help="gguf or gguf:TYPE (such as gguf:q8_0).")
@click.option("--overwrite", is_flag=True, help="Replace the output directory if it exists.")
@json_option
@pass_console
def command(console: Console, checkpoint: Path, output: Path, target: str, overwrite: bool) -> None:
    """Build an artifact from CHECKPOINT: the container, its tokenizer, and a manifest."""
    from coldpress.pressing import build
    from coldpress.tables import pairs_table

    with console.progress("building") as on_progress:
        outcome = build(
            checkpoint, output, target=target, overwrite=overwrite, on_progress=on_progress
        )
    console.result(outcome, lambda: pairs_table(str(output), outcome))
