"""coldpress serve: answer OpenAI-compatible requests."""

from pathlib import Path

import click

from coldpress.console import Console
from coldpress.loading import Machine
from coldpress.options import (
    PATH,
    json_option,
    machine_options,
    parse_size,
    pass_console,
)


@click.command("serve")
@click.argument("artifact", type=PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="0 takes a free one.",
)
@click.option("--name", help="Name of the model in requests; its file name by default.")
@click.option("--context", type=click.IntRange(2), help="Longest prompt and answer, in tokens.")
@click.option(
    "--kv-cache", metavar="SIZE", callback=parse_size, help="Memory of the KV cache: 512MB, 2GB."
)
@click.option(
    "--max-running",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Requests that share steps; further ones wait.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Requests that may wait; further ones are told to come back.",
)
@click.option(
    "--metrics-compat",
    type=click.Choice(["vllm"]),
    multiple=True,
    help="Give /metrics under another server's names as well.",
)
@machine_options("int8")
@json_option
@pass_console
def command(
    console: Console,
    artifact: Path,
    host: str,
    port: int,
    name: str | None,
    context: int | None,
    kv_cache: int | None,
    max_running: int,
    max_waiting: int,
    metrics_compat: tuple[str, ...],
    machine: Machine,
) -> None:
    """Serve ARTIFACT over HTTP until a signal; /v1/chat/completions, /v1/completions, /metrics.

    With --json, one object with the address is printed when requests are accepted.
    """
    from coldpress.loading import open_service
    from runtime.engine.options import EngineOptions
    from runtime.server.main import serve

    service, close = open_service(
        artifact,
        machine=machine,
        context=context,
        kv_cache_bytes=kv_cache,
        options=EngineOptions(max_running=max_running, max_waiting=max_waiting),
        name=name,
        on_note=console.note,
    )

    def ready(url: str) -> None:
        value = {"url": url, "model": service.model_name, "context": service.max_positions}
        console.result(value, lambda: f"{service.model_name} answers at {url}/v1")

    try:
        serve([service], host, port, ready, metrics_compat=metrics_compat)
    finally:
        close()
