"""The Python API: the verbs of the command line as functions.

Errors are those of `quant.format.errors`; nothing is printed.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coldpress import evaluation, pressing
from coldpress.llm import LLM, Completion
from coldpress.loading import Activations, Machine
from coldpress.texts import read_text
from runtime.evaluation.protocol import ProtocolName

__all__ = ["LLM", "Completion", "build", "evaluate", "pull", "quantize", "verify"]

Progress = Callable[[int, int, str], None]


def quantize(
    model: Path | str,
    output: Path | str,
    *,
    recipe: str,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    calibration: str = "self",
    overwrite: bool = False,
    resume: bool = False,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Quantize a Hugging Face checkpoint or a GGUF file; returns the report of
    `coldpress quantize --json`.

    recipe: name of a shipped recipe, or path of a YAML file. overrides: `{"key": value}`, as
    `--set`. calibration: a text, JSONL or Parquet file, a `datasets` name, or "self".
    resume: take up the layers that a killed run with the same input and recipe has finished.
    """
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={value}" for key, value in overrides.items()]
    return pressing.quantize(
        Path(model),
        Path(output),
        recipe=recipe,
        overrides=overrides,
        calibration=calibration,
        overwrite=overwrite,
        resume=resume,
        on_progress=on_progress,
    )


def build(
    checkpoint: Path | str,
    output: Path | str,
    *,
    target: str = "gguf",
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Build an artifact directory; returns the report of `coldpress build --json`."""
    return pressing.build(
        Path(checkpoint),
        Path(output),
        target=target,
        overwrite=overwrite,
        on_progress=on_progress,
    )


def evaluate(
    artifact: Path | str,
    text: Path | str,
    *,
    baseline: Path | str | None = None,
    protocol: ProtocolName = "paper",
    window: int | None = None,
    cache: bool = False,
    backend: str = "auto",
    threads: int | None = None,
    activations: Activations = "float32",
    kv_cache_type: str = "auto",
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate on a text file; returns the report of `coldpress eval --json`.

    activations: what integer weights are multiplied by; "int8" measures what serving does.
    kv_cache_type: what keys and values are kept in, those of the baseline excepted.
    cache: keep what the baseline predicts in the user's cache, and read it there the next time.
    """
    from coldpress.baseline_cache import BaselineCache

    return evaluation.evaluate_files(
        Path(artifact),
        read_text(Path(text)),
        baseline=None if baseline is None else Path(baseline),
        protocol=protocol,
        window=window,
        cache=BaselineCache() if cache else None,
        machine=Machine.of(backend, threads, activations, kv_cache_type),
        on_progress=on_progress,
    )


def pull(
    source: Path | str,
    name: str | None = None,
    *,
    link: bool = False,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Bring a model into the local store; returns the report of `coldpress pull --json`.

    source: a directory or file, `hf:owner/name[@revision][:file.gguf]`, or
    `oci://host/repository:tag`. name: what `LLM` and the commands know it by; its own by default.
    link: share a local model's files instead of copying them.
    """
    from coldpress.store.pull import pull as bring
    from coldpress.store.pull import report_of

    return report_of(bring(str(source), name, link=link, on_progress=on_progress))


def verify(
    artifact: Path | str,
    *,
    against: Path | str | None = None,
    logits: bool = True,
    on_progress: Progress | None = None,
) -> Any:
    """Check an artifact; returns the report of `coldpress verify --json`."""
    from coldpress.proving import verify as prove

    return prove(
        Path(artifact),
        against=None if against is None else Path(against),
        logits=logits,
        on_progress=on_progress,
    )
