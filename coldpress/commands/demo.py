"""coldpress demo: a real model, from the package index to an answered request."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from coldpress.console import Console
from coldpress.environment import prepare_environment
from coldpress.options import PATH, json_option, pass_console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from coldpress.demo import Outcome


@click.command("demo")
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path("demo-out"),
    show_default=True,
    help="Directory for the artifacts; replaced.",
)
@json_option
@pass_console
def command(console: Console, output: Path) -> None:
    """Press SmolLM2-135M-Instruct (download: 85 MB, kept in the cache), serve it, ask it."""
    prepare_environment()
    from coldpress.demo import run_demo

    outcome = run_demo(console, output)
    console.result(outcome, lambda: _render(outcome))


def _render(outcome: "Outcome") -> "RenderableType":
    from rich.table import Table

    from coldpress.tables import human_bytes

    table = Table(
        title="SmolLM2-135M-Instruct, pressed",
        caption=f"{outcome.question}\n{outcome.answer}",
        caption_justify="left",
        caption_style="bold",
    )
    for name in ("artifact", "size", "bits/weight", "perplexity", "KLD", "top-1", "tokens/s"):
        table.add_column(name, justify="left" if name == "artifact" else "right")
    for row in outcome.rows:
        table.add_row(
            row.artifact,
            human_bytes(row.bytes),
            f"{row.bits_per_weight:.2f}",
            f"{row.perplexity:.2f}",
            "-" if row.kld is None else f"{row.kld:.4f}",
            "-" if row.top1 is None else f"{row.top1:.1%}",
            f"{row.tokens_per_second:.1f}",
        )
    return table
