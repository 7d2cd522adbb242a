"""coldpress eval: perplexity, and the distance to a baseline."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coldpress.console import Console
from coldpress.gates import parse_gates, record_verdicts, require_baseline, require_held
from coldpress.junit import gate_cases, junit_file
from coldpress.loading import Machine
from coldpress.options import (
    ARTIFACT,
    PATH,
    cache_options,
    gate_option,
    json_option,
    junit_option,
    machine_options,
    pass_console,
)

if TYPE_CHECKING:
    from coldpress.baseline_cache import BaselineCache
    from coldpress.evaluation import Figures
    from runtime.evaluation.protocol import ProtocolName

_FOR_MACHINES = frozenset({"model", "text_sha256", "kld_histogram", "gates"})


@click.command("eval")
@click.argument("artifact", type=ARTIFACT)
@click.option("--text", type=PATH, required=True, help="UTF-8 text to predict.")
@click.option(
    "--baseline", type=ARTIFACT, help="Model to compare with: usually the float original."
)
@click.option(
    "--protocol",
    type=click.Choice(["paper", "llama.cpp"]),
    default="paper",
    show_default=True,
    help="paper: all of a window but its first token; llama.cpp: its second half.",
)
@click.option(
    "--window",
    type=click.IntRange(2),
    help="Tokens; 2048 (paper) or 512 (llama.cpp), or a shorter context.",
)
@click.option("--max-tokens", type=click.IntRange(2), help="Use only this much of the text.")
@cache_options
@machine_options("float32")
@gate_option
@junit_option
@json_option
@pass_console
def command(
    console: Console,
    artifact: Path,
    text: Path,
    baseline: Path | None,
    protocol: "ProtocolName",
    window: int | None,
    max_tokens: int | None,
    cache: "BaselineCache | None",
    machine: Machine,
    gates: Sequence[str],
    junit: Path | None,
) -> None:
    """Perplexity of ARTIFACT on a text; with --baseline, KL divergence and top-1 agreement.

    Windows do not overlap, and the tail that fills none is dropped. A gate holds when the whole 95%
    interval of its figure does; if only a part of it does, the gate is undecided, and not met. What
    the baseline predicts is kept for the next candidate.
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
                protocol=protocol,
                window=window,
                max_tokens=max_tokens,
                cache=cache,
                machine=machine,
                on_progress=on_progress,
                on_note=console.note,
            )
        verdicts = record_verdicts(wanted, figures, figures)
        console.result(figures, lambda: _render(artifact, figures))
        cases += gate_cases(verdicts)
        require_held(verdicts)


def _render(artifact: Path, figures: "Figures") -> object:
    from coldpress.tables import pairs_table

    shown = {key: value for key, value in figures.items() if key not in _FOR_MACHINES}
    for gate in figures.get("gates", []):
        shown[gate["gate"]] = gate["verdict"]
    return pairs_table(str(artifact), shown)
