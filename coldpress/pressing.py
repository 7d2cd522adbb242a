"""The two pressings, end to end: a checkpoint is quantized, an artifact is built.

Each writes its directory aside and moves it into place when the manifest, its last file, is there.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.evaluation import Figures, evaluate_files, sizes
from coldpress.jsonable import to_jsonable
from coldpress.loading import default_name
from coldpress.sources import opened_source
from coldpress.targets import Target, parse_target, write_payload
from coldpress.triton import fill_repository
from compile.manifest import MANIFEST, describe_source, write_manifest
from quant.format.checkpoint import TEXT_FILES
from quant.format.errors import InputError
from quant.format.staging import staged_directory

if TYPE_CHECKING:
    from coldpress.baseline_cache import BaselineCache

Progress = Callable[[int, int, str], None]

TOOLS = ("coldpress", "numpy", "gguf", "onnx", "torch", "transformers", "tokenizers")


def quantize(
    model: Path,
    output: Path,
    *,
    recipe: str,
    overrides: Sequence[str] = (),
    calibration: str = "self",
    overwrite: bool = False,
    evaluation_text: str | None = None,
    cache: "BaselineCache | None" = None,
    resume: bool = False,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a checkpoint in the recipe's format; returns the report, evaluated if there is a text.

    model: a Hugging Face directory, a GGUF file, or a directory that holds one.

    resume: take up the layers that a run with the same input and recipe finished before it died.

    Raises InputError, before the first weight is read, for a recipe or model that cannot work.
    """
    from quant.calibration import parse_source
    from quant.recipe import load_recipe
    from quant.resume import ResumeStore, resume_directory
    from quant.run import quantize_checkpoint

    loaded, text = load_recipe(recipe, overrides), parse_source(calibration)
    with opened_source(model) as source, _assembled(output, overwrite) as (work, staging):
        report: dict[str, Any] = to_jsonable(
            quantize_checkpoint(
                source.checkpoint,
                work,
                loaded,
                text,
                on_progress=on_progress,
                resume=resume,
                final=output,
            )
        )
        evaluation = None
        if evaluation_text is not None:
            evaluation = _evaluated(work, evaluation_text, model, cache, on_progress)
        _flatten(work, staging)
        write_manifest(
            staging,
            "checkpoint",
            sources=[describe_source(model)],
            recipe=report["recipe"],
            calibration=report["calibration"],
            modules={
                module["module"]: {key: module[key] for key in ("scheme", "algorithm", "state")}
                for module in report["modules"]
            },
            tools=tool_versions(),
            evaluation=evaluation,
        )
    ResumeStore(resume_directory(output)).clear()
    return {"output": str(output), **report, "evaluation": evaluation}


def build(
    checkpoint: Path,
    output: Path,
    *,
    target: str,
    overwrite: bool = False,
    evaluation_text: str | None = None,
    cache: "BaselineCache | None" = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Write an artifact directory: the container, the text side's files, a manifest; or, for
    Triton, a model repository around a finished artifact.

    With a text, the artifact is evaluated against the checkpoint. Raises InputError for an unknown
    target, or a checkpoint that the target cannot carry.
    """
    wanted = parse_target(target)
    if wanted.kind == "triton":
        return _export(checkpoint, output, wanted, overwrite, evaluation_text, on_progress)
    with opened_source(checkpoint) as source, _assembled(output, overwrite) as (work, staging):
        work.mkdir()
        built = write_payload(wanted, source, work, on_progress)
        for name in TEXT_FILES:
            if (source.text_directory / name).is_file():
                shutil.copyfile(source.text_directory / name, work / name)
        evaluation = None
        if evaluation_text is not None:
            evaluation = _evaluated(work, evaluation_text, checkpoint, cache, on_progress)
        size, bits_per_weight = sizes(work)
        _flatten(work, staging)
        write_manifest(
            staging,
            wanted.kind,
            parents=[describe_source(checkpoint)],
            modules=built.types,
            tools=tool_versions(),
            evaluation=evaluation,
            engine=built.engine,
        )
    return {
        "output": str(output),
        "target": target,
        "bytes": size,
        "bits_per_weight": bits_per_weight,
        "tensors_by_type": dict(Counter(built.types.values())),
        "notes": list(built.notes),
        "evaluation": evaluation,
    }


def _export(
    artifact: Path,
    output: Path,
    target: Target,
    overwrite: bool,
    evaluation_text: str | None,
    on_progress: Progress | None,
) -> dict[str, Any]:
    if evaluation_text is not None:
        raise InputError("gates are for artifacts, and a Triton repository packs a finished one")
    with _assembled(output, overwrite) as (work, staging):
        work.mkdir()
        name = target.type_name or default_name(artifact)
        made = fill_repository(artifact, work, name, on_progress)
        _flatten(work, staging)
    return {"output": str(output), "target": str(target), **made, "evaluation": None}


def _evaluated(
    work: Path,
    text: str,
    baseline: Path,
    cache: "BaselineCache | None",
    on_progress: Progress | None,
) -> Figures:
    """Figures for a manifest: what the artifact is called is not part of it."""
    figures = evaluate_files(work, text, baseline=baseline, cache=cache, on_progress=on_progress)
    del figures["model"]
    return figures


def tool_versions() -> dict[str, str]:
    """Version of each installed package that can change the bytes of an artifact."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def _assembled(output: Path, overwrite: bool) -> Iterator[tuple[Path, Path]]:
    """A folder to work in, inside the staging directory that will become `output`.

    Raises InputError where `overwrite` would remove something that coldpress did not write.
    """
    occupied = output.is_dir() and any(output.iterdir())
    if overwrite and occupied and not (output / MANIFEST).is_file():
        raise InputError(
            f"{output}: holds no {MANIFEST}, so it is not replaced; remove it or choose another "
            "output"
        )
    with staged_directory(output, overwrite=overwrite) as staging:
        yield staging / "work", staging


def _flatten(work: Path, staging: Path) -> None:
    for path in work.iterdir():
        path.rename(staging / path.name)
    work.rmdir()
