"""coldpress verify: the proof that an artifact means the same numbers."""

from pathlib import Path

import click

from coldpress.console import Console
from coldpress.loading import Machine
from coldpress.options import ARTIFACT, json_option, kv_cache_type_option, pass_console
from quant.format.errors import CheckFailedError

SHOWN = 3
"""Failures named in the closing sentence; all of them are in the JSON."""


@click.command("verify")
@click.argument("artifact", type=ARTIFACT)
@click.option("--against", type=ARTIFACT, help="Checkpoint that the artifact was built from.")
@click.option("--logits/--no-logits", default=True, help="Compare logits too (needs --against).")
@kv_cache_type_option
@click.option("--record", is_flag=True, help="Keep the report, once passed, as parity.json in it.")
@json_option
@pass_console
def command(
    console: Console,
    artifact: Path,
    against: Path | None,
    logits: bool,
    kv_cache_type: str,
    record: bool,
) -> None:
    """Check ARTIFACT: digests of its files; with --against, every integer, then the logits."""
    from coldpress.proving import verify
    from coldpress.tables import verify_table

    with console.progress("verifying") as on_progress:
        report = verify(
            artifact,
            against=against,
            logits=logits,
            record=record,
            machine=Machine(kv_cache_type=kv_cache_type),
            on_progress=on_progress,
        )
    console.result(report.to_json(), lambda: verify_table(report))
    if not report.passed:
        problems = "; ".join(report.failures[:SHOWN])
        more = len(report.failures) - SHOWN
        rest = f"; and {more} more" if more > 0 else ""
        raise CheckFailedError(f"{artifact} did not pass: {problems}{rest}")
