"""coldpress quantize: choose the integers of a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coldpress.console import Console
from coldpress.environment import prepare_environment
from coldpress.gates import parse_gates, record_verdicts, require_held
from coldpress.junit import gate_cases, junit_file, module_cases
from coldpress.options import (
    ARTIFACT,
    PATH,
    cache_options,
    gate_option,
    gate_text_option,
    json_option,
    junit_option,
    pass_console,
)

if TYPE_CHECKING:
    from coldpress.baseline_cache import BaselineCache


@click.command("quantize")
@click.argument("model", type=ARTIFACT)
@click.option("-o", "--output", type=PATH, required=True, help="Directory to write.")
@click.option("--recipe", required=True, help="Name of a shipped recipe, or a YAML file.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe.")
@click.option(
    "--calibration",
    default="self",
    show_default=True,
    help="Text, JSONL or Parquet file, a datasets name, or 'self': the model's own writing.",
)
@click.option("--overwrite", is_flag=True, help="Replace the output directory if it exists.")
@click.option("--resume", is_flag=True, help="Take up the layers that a killed run has finished.")
@gate_text_option
@cache_options
@gate_option
@junit_option
@json_option
@pass_console
def command(
    console: Console,
    model: Path,
    output: Path,
    recipe: str,
    overrides: Sequence[str],
    calibration: str,
    overwrite: bool,
    resume: bool,
    gate_text: Path | None,
    cache: "BaselineCache | None",
    gates: Sequence[str],
    junit: Path | None,
) -> None:
    """Quantize MODEL, a Hugging Face checkpoint or a GGUF file, by a recipe."""
    prepare_environment()
    from coldpress.pressing import quantize
    from coldpress.tables import pairs_table
    from coldpress.texts import text_for_gates

    wanted = parse_gates(gates)
    text = text_for_gates(gate_text) if wanted else None
    with junit_file(junit, "quantize", output) as cases:
        _preflight(console, model, recipe, overrides)
        with console.progress("quantizing") as on_progress:
            outcome = quantize(
                model,
                output,
                recipe=recipe,
                overrides=overrides,
                calibration=calibration,
                overwrite=overwrite,
                resume=resume,
                evaluation_text=text,
                cache=cache,
                on_progress=on_progress,
            )
        verdicts = record_verdicts(wanted, outcome["evaluation"], outcome)
        console.result(outcome, lambda: pairs_table(str(output), _summary(outcome)))
        cases += module_cases(outcome["modules"])
        cases += gate_cases(verdicts)
        require_held(verdicts)


def _preflight(console: Console, model: Path, recipe: str, overrides: Sequence[str]) -> None:
    """What `coldpress plan` says before the first weight is read: sizes, and every warning."""
    from coldpress.planning import plan_quantize
    from coldpress.tables import human_bytes

    planned = plan_quantize(model, recipe, overrides)
    console.note(
        f"{human_bytes(planned['file_bytes'])} of weights will be written; at most about "
        f"{human_bytes(planned['peak_memory_bytes'])} of memory and "
        f"{human_bytes(planned['disk_bytes'])} of disk are used on the way"
    )
    for note in planned["notes"]:
        console.note(f"note: {note}")
    for server in planned["servers"]:
        if not server["loads"]:
            console.note(f"note: {server['server']} will not load it: {server['reason']}")


def _summary(outcome: dict[str, Any]) -> dict[str, Any]:
    """For people: how many modules went as asked, and every one that did not."""
    modules = outcome["modules"]
    shown = ("output", "bytes", "bits_per_weight", "calibration", "seconds", "notes", "evaluation")
    summary = {key: outcome[key] for key in shown}
    summary["as asked"] = sum(module["state"] == "as asked" for module in modules)
    others = {m["module"]: m["state"] for m in modules if m["state"] != "as asked"}
    return {**summary, **others}
