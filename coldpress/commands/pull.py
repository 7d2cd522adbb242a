"""coldpress pull: bring a model into the local store."""

import click

from coldpress.console import Console
from coldpress.options import json_option, pass_console
from coldpress.tables import human_bytes


@click.command("pull")
@click.argument("source")
@click.option("--name", help="What to call it, such as smollm2 or org/smollm2:q4.")
@click.option("--link", is_flag=True, help="Share a local model's files instead of copying them.")
@click.option("--plain-http", is_flag=True, help="Speak to a registry without TLS.")
@click.option("--endpoint", metavar="URL", help="Hugging Face hub to ask; HF_ENDPOINT by default.")
@json_option
@pass_console
def command(
    console: Console,
    source: str,
    name: str | None,
    link: bool,
    plain_http: bool,
    endpoint: str | None,
) -> None:
    """Bring SOURCE into the local store, to be served by name.

    SOURCE is a directory or file, hf:owner/name[@revision][:file.gguf], or an OCI registry's
    oci://host/repository:tag. A pull that was interrupted goes on where it was.
    """
    from coldpress.store.pull import pull, report_of

    with console.progress("pulling") as on_progress:
        entry = pull(
            source,
            name,
            link=link,
            plain_http=plain_http,
            endpoint=endpoint,
            on_progress=on_progress,
        )
    console.result(
        report_of(entry), lambda: f"{entry.name}: {human_bytes(entry.bytes)} from {entry.source}"
    )
