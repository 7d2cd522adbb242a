"""coldpress plan: what quantizing or building would make."""

from collections.abc import Sequence
from pathlib import Path

import click

from coldpress.console import Console
from coldpress.options import ARTIFACT, json_option, pass_console


@click.command("plan")
@click.argument("model", type=ARTIFACT)
@click.option("--recipe", help="Name of a shipped recipe, or a YAML file: plan quantizing MODEL.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe.")
@click.option("--target", help="gguf[:TYPE] or onnx[:TYPE]: plan building from MODEL.")
@json_option
@pass_console
def command(
    console: Console,
    model: Path,
    recipe: str | None,
    overrides: Sequence[str],
    target: str | None,
) -> None:
    """Show type, bytes and reason for every tensor; reads headers only, writes nothing."""
    from rich.console import Group, RenderableType

    from coldpress.planning import plan_build, plan_quantize
    from coldpress.tables import pairs_table, rows_table

    if (recipe is None) == (target is None):
        raise click.UsageError("Give --recipe to plan quantizing, or --target to plan building.")
    if recipe is not None:
        planned = plan_quantize(model, recipe, overrides)
    else:
        planned = plan_build(model, str(target))
    hidden = ("tensors", "servers", "notes")
    summary = {key: value for key, value in planned.items() if key not in hidden}
    for index, note in enumerate(planned["notes"]):
        summary[f"note {index + 1}"] = note
    servers = [[s["server"], s["loads"], s["reason"]] for s in planned.get("servers", [])]
    columns = list(planned["tensors"][0]) if planned["tensors"] else []
    rows = [[tensor[column] for column in columns] for tensor in planned["tensors"]]
    tables: list[RenderableType] = [pairs_table(str(model), summary), rows_table("", columns, rows)]
    if servers:
        tables.insert(1, rows_table("", ["server", "loads it", "how, or why not"], servers))
    console.result(planned, lambda: Group(*tables))
