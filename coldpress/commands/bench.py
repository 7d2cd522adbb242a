"""coldpress bench: latency, throughput and memory."""

from pathlib import Path

import click

from coldpress.console import Console
from coldpress.loading import Machine
from coldpress.options import PATH, json_option, machine_options, pass_console


def _numbers(_ctx: click.Context, _param: click.Parameter, value: str) -> list[int]:
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"'{value}' is not a list of positive numbers such as 1,4,16")
    return numbers


@click.command("bench")
@click.argument("artifact", type=PATH)
@click.option(
    "--concurrency",
    metavar="N,N,...",
    callback=_numbers,
    default="1,4,16",
    show_default=True,
    help="Requests that start together, one run for each number.",
)
@click.option("--prompt-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("--output-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True)
@machine_options("int8")
@json_option
@pass_console
def command(
    console: Console,
    artifact: Path,
    concurrency: list[int],
    prompt_tokens: int,
    output_tokens: int,
    rounds: int,
    machine: Machine,
) -> None:
    """Time ARTIFACT through the engine: random prompts, greedy, output forced to its length."""
    from coldpress.benching import bench
    from coldpress.tables import rows_table

    with console.progress("benchmarking") as on_progress:
        figures = bench(
            artifact,
            concurrency=concurrency,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            rounds=rounds,
            machine=machine,
            on_progress=on_progress,
            on_note=console.note,
        )
    columns = ["streams", "prefill tok/s", "decode tok/s", "of limit", "TTFT p50 ms", "TPOT p50 ms"]
    rows = [
        [
            run.concurrency,
            run.prefill_tokens_per_second,
            run.decode_tokens_per_second,
            run.fraction_of_limit,
            run.ttft_ms["p50"],
            run.tpot_ms["p50"],
        ]
        for run in figures["runs"]
    ]
    held = figures["limits"]["held_bytes"] / 1e6
    title = (
        f"{artifact}: {prompt_tokens} + {output_tokens} tokens, {figures['threads']} threads, "
        f"weights of {held:,.1f} MB in memory"
    )
    console.result(figures, lambda: rows_table(title, columns, rows))
