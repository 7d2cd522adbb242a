"""coldpress serve: answer OpenAI-compatible requests."""

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coldpress.access_options import AccessPlan, access_options
from coldpress.console import Console
from coldpress.engine_options import engine_options
from coldpress.loading import Machine
from coldpress.options import (
    PATH,
    json_option,
    machine_options,
    parse_duration,
    parse_size,
    pass_console,
)
from quant.format.errors import InputError

if TYPE_CHECKING:
    from coldpress.serving import ModelPlan, ServerPlan
    from runtime.engine.options import EngineOptions
    from runtime.server.registry import Registry


@click.command("serve")
@click.argument("artifacts", nargs=-1, metavar="[NAME=]ARTIFACT...")
@click.option("--config", type=PATH, metavar="FILE", help="Models and aliases from a YAML file.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="0 takes a free one.",
)
@click.option("--name", help="Name of a lone model in requests; its file name by default.")
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="NAME=A:90,B:10",
    help="Another name for a model, or for several by weight.",
)
@click.option(
    "--shadow",
    "shadows",
    multiple=True,
    metavar="A=B:0.1",
    help="Copy that share of A's requests to B and drop B's answers.",
)
@click.option(
    "--on-demand", is_flag=True, help="Load each model when a request first names it, not before."
)
@click.option(
    "--idle-unload",
    metavar="TIME",
    callback=parse_duration,
    help="Unload models that no request used for so long: 90s, 5m. They come back on demand.",
)
@click.option(
    "--make-room",
    is_flag=True,
    help="Unload idle models, the longest unused first, where another one needs their memory.",
)
@click.option("--context", type=click.IntRange(2), help="Longest prompt and answer, in tokens.")
@click.option(
    "--kv-cache", metavar="SIZE", callback=parse_size, help="Memory of the KV cache: 512MB, 2GB."
)
@engine_options
@click.option(
    "--metrics-compat",
    type=click.Choice(["vllm"]),
    multiple=True,
    help="Give /metrics under another server's names as well.",
)
@click.option(
    "--stream-comments",
    metavar="TIME",
    callback=parse_duration,
    help="Send a comment in streams that were quiet for so long, for proxies that give up on them: "
    "15s. Off by default, since some clients take none.",
)
@access_options
@machine_options("int8")
@json_option
@pass_console
def command(
    console: Console,
    artifacts: tuple[str, ...],
    config: Path | None,
    host: str,
    port: int,
    name: str | None,
    aliases: tuple[str, ...],
    shadows: tuple[str, ...],
    on_demand: bool,
    idle_unload: float | None,
    make_room: bool,
    context: int | None,
    kv_cache: int | None,
    options: "EngineOptions",
    metrics_compat: tuple[str, ...],
    stream_comments: float | None,
    access: AccessPlan,
    machine: Machine,
) -> None:
    """Serve models over HTTP until a signal; /v1/chat/completions, /v1/completions, /metrics.

    ARTIFACT is a path or a name of the local store (`coldpress list`). The options of a model are
    those of each; --config gives each its own. The first model answers requests that name none.

    With --json, one object with the address is printed when requests are accepted.
    """
    from coldpress.serving import ModelPlan, ServerPlan, open_registry, started_ahead
    from runtime.server.address import bound
    from runtime.server.registry_names import parse_alias, parse_shadow

    defaults = ModelPlan("", Path(), machine, context, kv_cache, options, on_demand)
    asked = ServerPlan(
        _models(artifacts, name, defaults),
        [parse_alias(text) for text in aliases],
        [parse_shadow(text) for text in shadows],
        idle_unload,
        make_room,
    )
    plan = _with_config(config, asked, defaults)
    with bound(host, port) as address:
        with started_ahead(plan) as ahead:
            guarded, tls = access.open()
            # Only now: importing it takes as long as a worker's own start, which runs meanwhile.
            from runtime.server.limits import Limits
            from runtime.server.main import serve

            registry = open_registry(plan, console.note, ahead)
        try:
            serve(
                registry,
                host,
                port,
                lambda url: _tell(console, registry, plan, url),
                limits=Limits(comment_seconds=stream_comments),
                metrics_compat=metrics_compat,
                access=guarded,
                tls=tls,
                at=address,
            )
        finally:
            registry.close()


def _models(
    artifacts: Sequence[str], name: str | None, defaults: "ModelPlan"
) -> "Sequence[ModelPlan]":
    from coldpress.serving import named_path
    from coldpress.store.resolve import resolve

    if name is not None and len(artifacts) != 1:
        raise InputError("--name is for a lone model; name each of several as NAME=ARTIFACT")
    found = [named_path(text, resolve) for text in artifacts]
    return [replace(defaults, name=name or own, path=path) for own, path in found]


def _with_config(config: Path | None, asked: "ServerPlan", defaults: "ModelPlan") -> "ServerPlan":
    """What the file says, after what the command line does."""
    from coldpress.serving_config import read_config
    from coldpress.store.resolve import resolve

    if config is None:
        if not asked.models:
            raise InputError("nothing to serve; name an ARTIFACT, or a file with --config")
        return asked
    plan = read_config(config, defaults, resolve)
    return replace(
        plan,
        models=[*asked.models, *plan.models],
        aliases=[*asked.aliases, *plan.aliases],
        shadows=[*asked.shadows, *plan.shadows],
        idle_seconds=plan.idle_seconds if asked.idle_seconds is None else asked.idle_seconds,
        make_room=asked.make_room or plan.make_room,
    )


def _tell(console: Console, registry: "Registry", plan: "ServerPlan", url: str) -> None:
    # The collector need not go through what stays for good, again and again amid answers.
    gc.freeze()
    names = [model.name for model in plan.models]
    first = registry.models[names[0]]
    service = first.service
    context = first.settings.card["max_model_len"] if service is None else service.max_positions
    memory = {one.name: one.loaded.memory for one in registry.models.values() if one.loaded}
    value = {"url": url, "model": first.name, "context": context, "models": names}
    value["memory"] = {name: dict(found) for name, found in memory.items()}
    verb = "answer" if names[1:] else "answers"
    console.result(value, lambda: f"{', '.join(names)} {verb} at {url}/v1")
