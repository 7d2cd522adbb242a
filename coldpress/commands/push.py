"""coldpress push: put a model of the local store into an OCI registry."""

import click

from coldpress.console import Console
from coldpress.options import json_option, pass_console


@click.command("push")
@click.argument("name")
@click.argument("target")
@click.option("--plain-http", is_flag=True, help="Speak to the registry without TLS.")
@json_option
@pass_console
def command(console: Console, name: str, target: str, plain_http: bool) -> None:
    """Put the stored model NAME into a registry, as TARGET: oci://host/repository:tag.

    The password, where there is one, is read from COLDPRESS_REGISTRY_AUTH (USER:PASSWORD).
    """
    from coldpress.store.local import Store
    from coldpress.store.names import parse_name
    from coldpress.store.registry import push

    store = Store()
    entry = store.get(parse_name(name))
    with console.progress("pushing") as on_progress:
        address = push(store, entry, target, plain_http=plain_http, on_progress=on_progress)
    console.result(
        {"name": str(entry.name), "address": address}, lambda: f"{entry.name} is at {address}"
    )
