"""coldpress report: artifacts on one page."""

from collections.abc import Sequence
from pathlib import Path

import click

from coldpress.console import Console
from coldpress.options import PATH, json_option, pass_console


@click.command("report")
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="DIR [FILE.json]...")
@click.option(
    "-o", "--output", type=PATH, required=True, help="File to write: .html, .json or .md."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "json", "md"]),
    help="What to write; by the suffix of the output file otherwise.",
)
@json_option
@pass_console
def command(console: Console, paths: Sequence[Path], output: Path, form: str | None) -> None:
    """Compare artifacts: states, sizes, quality, and errors by layer, in one file.

    Each DIR is an artifact. What `coldpress --json eval` or `coldpress --json bench` printed about
    it can follow as FILE.json.
    """
    from coldpress.report.write import write_report
    from coldpress.tables import pairs_table

    outcome = write_report(paths, output, form)
    console.result(outcome, lambda: pairs_table(str(output), outcome))
