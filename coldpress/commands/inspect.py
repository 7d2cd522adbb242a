"""coldpress inspect: what is in an artifact."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coldpress.console import Console
from coldpress.options import ARTIFACT, json_option, pass_console

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("inspect")
@click.argument("artifact", type=ARTIFACT)
@json_option
@pass_console
def command(console: Console, artifact: Path) -> None:
    """Show the family, the sizes and every tensor of ARTIFACT; reads headers only.

    ARTIFACT may also be anybody's ONNX decoder: what ONNX Runtime or TensorRT will refuse, compute
    wrongly or run slowly is named, with the node and what to do.
    """
    from rich.console import Group

    from coldpress.inspection import inspect_model
    from coldpress.tables import pairs_table, rows_table

    found = inspect_model(artifact)
    summary = {key: value for key, value in found.items() if key not in ("tensors", "findings")}
    parts: list[RenderableType] = [pairs_table(str(artifact), summary)]
    if "tensors" in found:
        rows = [[t["name"], t["shape"], t["scheme"], t["bytes"]] for t in found["tensors"]]
        parts.append(rows_table("", ["tensor", "shape", "scheme", "bytes"], rows))
    if found["findings"]:
        columns = ["rule", "level", "for", "nodes", "first", "what", "instead"]
        parts.append(rows_table("", columns, [_finding(f) for f in found["findings"]]))
    console.result(found, lambda: Group(*parts))


def _finding(finding: Mapping[str, Any]) -> list[Any]:
    """One row."""
    targets, first = ", ".join(finding["targets"]), finding["nodes"][0]
    head = [finding["rule"], finding["level"], targets, finding["count"], first]
    return [*head, finding["sentence"], finding["fix"]]
