"""coldpress bench: latency, throughput and memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coldpress.console import Console
from coldpress.loading import Machine
from coldpress.options import ARTIFACT, json_option, machine_options, pass_console

if TYPE_CHECKING:
    from rich.table import Table

    from runtime.yardstick import Fractions


def _numbers(_ctx: click.Context, _param: click.Parameter, value: str) -> list[int]:
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"'{value}' is not a list of positive numbers such as 1,4,16")
    return numbers


@click.command("bench")
@click.argument("artifact", type=ARTIFACT)
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
@click.option("--profile", is_flag=True, help="Say where the time went, op by op.")
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
    profile: bool,
    machine: Machine,
) -> None:
    """Time ARTIFACT through the engine: random prompts, greedy, output forced to its length."""
    from coldpress.benching import bench
    from coldpress.tables import rows_table, stacked

    with console.progress("benchmarking") as on_progress:
        figures = bench(
            artifact,
            concurrency=concurrency,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            rounds=rounds,
            profile=profile,
            machine=machine,
            on_progress=on_progress,
            on_note=console.note,
        )
    phase = ["of bandwidth", "of int8"]
    columns = ["streams", "prefill tok/s", *phase, "decode tok/s", *phase]
    columns += ["TTFT p50 ms", "TPOT p50 ms"]
    rows = [
        [
            run.concurrency,
            run.prefill_tokens_per_second,
            *_percents(run.prefill_fractions),
            run.decode_tokens_per_second,
            *_percents(run.decode_fractions),
            run.ttft_ms["p50"],
            run.tpot_ms["p50"],
        ]
        for run in figures["runs"]
    ]
    limits = figures["limits"]
    title = (
        f"{artifact}: {prompt_tokens} + {output_tokens} tokens, {figures['threads']} threads, "
        f"weights of {limits['held_bytes'] / 1e6:,.1f} MB in memory\n"
        f"this machine reads {limits['read_bytes_per_second'] / 1e9:.1f} GB/s and makes "
        f"{limits['int8_operations_per_second'] / 1e9:,.0f} GOP/s of int8"
    )
    shown = rows_table(title, columns, rows)
    console.result(figures, lambda: stacked(shown, *profile_tables(figures)))


def _percents(fractions: "Fractions") -> list[str]:
    return [f"{each:.1%}" for each in (fractions.bandwidth, fractions.int8)]


def profile_tables(figures: Mapping[str, Any]) -> "list[Table]":
    """One for each concurrency, the longest op first; none without a profile."""
    from coldpress.tables import rows_table

    found = []
    for run, times in zip(figures["runs"], figures.get("profile", []), strict=False):
        prefill = sum(each.prefill_seconds for each in times)
        decode = sum(each.decode_seconds for each in times)
        rows = [
            [
                each.op,
                f"{each.prefill_seconds / max(prefill, 1e-9):.1%}",
                f"{each.decode_seconds / max(decode, 1e-9):.1%}",
            ]
            for each in sorted(times, key=lambda each: -each.decode_seconds - each.prefill_seconds)
        ]
        title = (
            f"{run.concurrency} stream(s): {prefill:.2f} s of prefill, {decode:.2f} s of decoding"
        )
        found.append(rows_table(title, ["op", "of prefill", "of decoding"], rows))
    return found
