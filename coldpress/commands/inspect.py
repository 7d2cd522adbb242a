"""coldpress inspect: what is in an artifact."""

from pathlib import Path

import click

from coldpress.console import Console
from coldpress.options import PATH, json_option, pass_console


@click.command("inspect")
@click.argument("artifact", type=PATH)
@json_option
@pass_console
def command(console: Console, artifact: Path) -> None:
    """Show the family, the sizes and every tensor of ARTIFACT; reads headers only."""
    from rich.console import Group

    from coldpress.inspection import inspect_model
    from coldpress.tables import pairs_table, rows_table

    found = inspect_model(artifact)
    summary = {key: value for key, value in found.items() if key != "tensors"}
    rows = [[t["name"], t["shape"], t["scheme"], t["bytes"]] for t in found["tensors"]]
    console.result(
        found,
        lambda: Group(
            pairs_table(str(artifact), summary),
            rows_table("", ["tensor", "shape", "scheme", "bytes"], rows),
        ),
    )
