"""coldpress run: one answer, or a chat."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coldpress.console import Console
from coldpress.loading import Machine
from coldpress.options import ARTIFACT, json_option, machine_options, pass_console

if TYPE_CHECKING:
    from coldpress.llm import LLM
    from runtime.generation import Generation


@click.command("run")
@click.argument("artifact", type=ARTIFACT)
@click.argument("prompt", required=False)
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0 is greedy."
)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0)
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--system", help="System message of the chat.")
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text; no chat template.")
@click.option("--context", type=click.IntRange(2), help="Longest context in tokens.")
@machine_options("int8")
@json_option
@pass_console
def command(
    console: Console,
    artifact: Path,
    prompt: str | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    system: str | None,
    raw: bool,
    context: int | None,
    machine: Machine,
) -> None:
    """One answer of ARTIFACT to PROMPT (or to stdin), or, on a terminal, a chat."""
    from coldpress.llm import LLM

    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
        if not prompt.strip():
            raise click.UsageError("There is nothing to answer: give a PROMPT, or pipe one in.")
    if prompt is None and console.json:
        raise click.UsageError("--json needs a PROMPT; a chat is not one object.")
    sampling: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "max_tokens": max_tokens,
    }
    with LLM(
        artifact,
        backend=machine.backend,
        threads=machine.threads,
        activations="float32" if machine.exact else "int8",
        kv_cache_type=machine.kv_cache_type,
        context=context,
        on_note=console.note,
    ) as model:
        plain = raw or not model.has_chat_template
        if prompt is None:
            _chat(model, system, plain, sampling)
        elif plain:
            _answer(console, model.stream(prompt, **sampling))
        else:
            _answer(console, model.stream_chat(_messages(system, prompt), **sampling))


def _messages(system: str | None, prompt: str) -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system is not None else []
    return [*first, {"role": "user", "content": prompt}]


def _answer(console: Console, generation: "Generation") -> None:
    start = time.perf_counter()
    text = _stream(generation, show=not console.json)
    seconds = time.perf_counter() - start
    result = {
        "text": text,
        "finish_reason": generation.finish_reason,
        "prompt_tokens": generation.num_prompt_tokens,
        "completion_tokens": generation.num_answer_tokens,
        "seconds": seconds,
    }
    # People have seen the text already, as it came.
    console.result(result, lambda: "")


def _stream(generation: "Generation", show: bool) -> str:
    parts = []
    for delta in generation:
        parts.append(delta.text)
        if show:
            click.echo(delta.text, nl=False)
        if delta.error is not None:
            raise RuntimeError(f"the engine failed: {delta.error}")
    return "".join(parts)


def _chat(model: "LLM", system: str | None, plain: bool, sampling: dict[str, Any]) -> None:
    from runtime.engine.request import RequestError

    click.echo("Ctrl-C stops an answer, Ctrl-D ends the chat.", err=True)
    messages: list[dict[str, str]] = _messages(system, "")[:-1]
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        asked = [*messages, {"role": "user", "content": line}]
        try:
            if plain:
                generation = model.stream(line, **sampling)
            else:
                generation = model.stream_chat(asked, **sampling)
        except RequestError as error:
            click.echo(f"error: {error}", err=True)
            continue
        try:
            text = _stream(generation, show=True)
        except KeyboardInterrupt:
            generation.cancel()
            text = ""
        click.echo()
        messages = [*asked, {"role": "assistant", "content": text}]
