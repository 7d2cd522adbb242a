"""coldpress list: the models of the local store."""

from typing import Any

import click

from coldpress.console import Console
from coldpress.options import json_option, pass_console
from coldpress.tables import human_bytes


@click.command("list")
@json_option
@pass_console
def command(console: Console) -> None:
    """The models of the local store, which `serve`, `run` and the others take by name."""
    from coldpress.store.local import Store

    store = Store()
    entries = store.entries()
    models = [
        {
            "name": str(entry.name),
            "bytes": entry.bytes,
            "created": entry.created,
            "source": entry.source,
            "path": store.directory(entry),
        }
        for entry in entries
    ]
    shared = {file.sha256: file.bytes for entry in entries for file in entry.files}
    value = {"store": store.root, "bytes": sum(shared.values()), "models": models}
    console.result(value, lambda: _table(value))


def _table(value: dict[str, Any]) -> Any:
    from rich.table import Table

    if not value["models"]:
        return f"{value['store']}: no models yet; coldpress pull brings one"
    table = Table(caption=f"{human_bytes(value['bytes'])} in {value['store']}")
    for title in ("name", "size", "pulled", "from"):
        table.add_column(title, justify="right" if title == "size" else "left")
    for model in value["models"]:
        table.add_row(
            model["name"], human_bytes(model["bytes"]), model["created"][:10], model["source"]
        )
    return table
