"""coldpress rm: forget models of the local store, and free what nothing needs any more."""

import click

from coldpress.console import Console
from coldpress.options import json_option, pass_console
from coldpress.tables import human_bytes


@click.command("rm")
@click.argument("names", nargs=-1, required=True)
@json_option
@pass_console
def command(console: Console, names: tuple[str, ...]) -> None:
    """Remove the models NAMES from the local store. Files that others share stay."""
    from coldpress.store.local import Store
    from coldpress.store.names import parse_name

    store = Store()
    wanted = [store.get(parse_name(name)).name for name in names]
    for name in dict.fromkeys(wanted):
        store.remove(name)
    freed = store.collect()
    removed = [str(name) for name in dict.fromkeys(wanted)]
    if freed is None:
        console.note("note: a pull is under way; the next coldpress rm frees the disk")
    console.result(
        {"removed": removed, "bytes_freed": freed or 0},
        lambda: f"removed {', '.join(removed)}; {human_bytes(freed or 0)} freed",
    )
