"""coldpress eval: perplexity, and the distance to a baseline."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coldpress.console import Console
from coldpress.gates import judge_gates, parse_gates, require_baseline, require_held
from coldpress.junit import gate_cases, junit_file
from coldpress.options import (
    PATH,
    backend_option,
    gate_option,
    json_option,
    junit_option,
    pass_console,
    threads_option,
)

if TYPE_CHECKING:
    from coldpress.evaluation import Figures


@click.command("eval")
@click.argument("artifact", type=PATH)
@click.option("--text", type=PATH, required=True, help="UTF-8 text to predict.")
@click.option("--baseline", type=PATH, help="Model to compare with: usually the float original.")
@click.option("--window", type=click.IntRange(2), help="Tokens; 1024, or a shorter context.")
@click.option("--max-tokens", type=click.IntRange(2), help="Use only this much of the text.")
@backend_option
@threads_option
@gate_option
@junit_option
@json_option
@pass_console
def command(
    console: Console,
    artifact: Path,
    text: Path,
    baseline: Path | None,
    window: int | None,
    max_tokens: int | None,
    backend: str,
    threads: int | None,
    gates: Sequence[str],
    junit: Path | None,
) -> None:
    """Perplexity of ARTIFACT on a text; with --baseline, KL divergence and top-1 agreement.

    Windows do not overlap, every position but a window's first is scored, the tail is dropped.
    """
    from coldpress.evaluation import evaluate_files
    from coldpress.texts import read_text

    wanted = parse_gates(gates)
    require_baseline(wanted, baseline is not None)
    with junit_file(junit, "eval") as cases:
        with console.progress("evaluating") as on_progress:
            figures = evaluate_files(
                artifact,
                read_text(text),
                baseline=baseline,
                window=window,
                max_tokens=max_tokens,
                backend=backend,
                threads=threads,
                on_progress=on_progress,
            )
        console.result(figures, lambda: _render(artifact, figures))
        verdicts = judge_gates(wanted, figures)
        cases += gate_cases(verdicts)
        require_held(verdicts)


def _render(artifact: Path, figures: "Figures") -> object:
    from coldpress.tables import pairs_table

    return pairs_table(str(artifact), figures)
