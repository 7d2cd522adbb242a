"""From a checkpoint and a recipe to a quantized checkpoint, complete or not at all."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from quant.calibration import (
    CalibrationSet,
    CalibrationSource,
    SelfSource,
    gather,
    parse_source,
)
from quant.format.checkpoint import Checkpoint
from quant.format.containers import CONTAINERS
from quant.format.errors import FileFormatError
from quant.format.safetensors_writer import ShardedWriter
from quant.format.staging import require_free_bytes, staged_directory
from quant.format.tensor import QuantizedTensor
from quant.kv_cache import KV_CACHE_SCHEMES
from quant.preflight import Prepared, prepare
from quant.recipe import CalibrationSpec, Recipe
from quant.report import REPORT_NAME, ModuleReport, QuantizeReport
from quant.reporting import lasting, module_report, whole_report
from quant.tasks import LinearTask, RoundingSettings
from quant.transforms.asked import layer_transforms

if TYPE_CHECKING:
    from quant.resume import ResumeStore

Progress = Callable[[int, int, str], None]

_HEADER_BYTES_PER_TENSOR = 512


@dataclass
class _Run:
    """What the steps of one run share."""

    prepared: Prepared
    recipe: Recipe
    settings: RoundingSettings
    calibration: CalibrationSet | None
    on_progress: Progress
    store: "ResumeStore"

    @property
    def tasks(self) -> Mapping[str, LinearTask]:
        return self.prepared.resolution.all_tasks()


def quantize_checkpoint(
    model: Path | Checkpoint,
    output: Path,
    recipe: Recipe,
    calibration: CalibrationSource | str = "self",
    *,
    on_progress: Progress | None = None,
    overwrite: bool = False,
    resume: bool = False,
    final: Path | None = None,
) -> QuantizeReport:
    """Write the checkpoint `model`, quantized by `recipe`, to the new directory `output`.

    The result is a checkpoint in the recipe's format with tokenizer files and a report; nothing
    appears at `output` unless all of it is there. The same input and library versions give the same
    bytes with any number of threads; global random state is left alone. `calibration` is not read
    for recipes that do not need it.

    Each finished layer is kept beside `output` until all are done. After a run that was cut off,
    `resume` takes up what the same input and recipe would do again; without it that is forgotten.
    final: where the caller will move `output`, which a killed run loses; layers are then kept
    beside `final`, until the caller clears them.

    Raises InputError (or a kind of it) before any weight is read when the model, recipe or text
    cannot work; CheckFailedError when a module ends otherwise than asked and the recipe's `allow`
    does not name that.
    """
    began = time.monotonic()
    output = Path(output)
    source = parse_source(calibration) if isinstance(calibration, str) else calibration
    prepared = prepare(model, recipe)
    tensors = len(prepared.plan.tensors)
    needed = 2 * prepared.plan.total_bytes + prepared.plan.spooled_bytes
    require_free_bytes(output, needed + tensors * _HEADER_BYTES_PER_TENSOR)
    progress = on_progress or _silent
    store = _open_store(output if final is None else final, resume)
    with staged_directory(output, overwrite=overwrite) as staging:
        data = None
        if recipe.needs_calibration:
            spec = recipe.calibration
            data = _calibration(source, prepared, spec, store, progress)
        run = _Run(prepared, recipe, _settings(prepared, recipe), data, progress, store)
        modules = _write_weights(run, staging)
        _write_config(run, staging)
        for path in prepared.source.files():
            shutil.copyfile(path, staging / path.name)
        report = whole_report(prepared, recipe, data, modules, staging)
        _write_json(staging / REPORT_NAME, lasting(report))
    if final is None:
        store.clear()
    return replace(report, seconds=round(time.monotonic() - began, 3))


def _open_store(output: Path, resume: bool) -> "ResumeStore":
    from quant.resume import ResumeStore, resume_directory

    store = ResumeStore(resume_directory(output))
    if not resume:
        store.clear()
    return store


def _calibration(
    source: CalibrationSource,
    prepared: Prepared,
    spec: CalibrationSpec,
    store: "ResumeStore",
    progress: Progress,
) -> CalibrationSet:
    """Text that the model writes itself takes long, so that it is kept like a layer."""
    if not isinstance(source, SelfSource):
        return gather(source, prepared.source, prepared.skeleton, spec, progress)
    from quant.resume import first_key

    raw = prepared.source
    parts = (raw.load_raw(name).tobytes() for name in sorted(raw.names()))
    about = (spec.model_dump_json(), json.dumps(raw.config, sort_keys=True))
    key = first_key(chain(about, parts))
    kept = store.load_tokens(key)
    if kept is not None:
        return CalibrationSet(kept[0], **kept[1])
    data = gather(source, raw, prepared.skeleton, spec, progress)
    store.save_tokens(key, data.tokens, {"source": data.source, "sha256": data.sha256})
    return data


def _settings(prepared: Prepared, recipe: Recipe) -> RoundingSettings:
    from quant.skeleton import weight_dtype

    container, scales = CONTAINERS[recipe.format], recipe.scales
    if scales == "signed" and not container.signed_scales:
        scales = "search"
    return RoundingSettings(
        damping=recipe.gptq.damping,
        by_activation=recipe.gptq.activation_order == "static",
        scales=scales,
        polish=recipe.gptq.polish,
        first_token_share=recipe.gptq.first_token_share,
        correction_share=recipe.gptq.correction,
        expert_min_tokens=recipe.experts.min_tokens,
        scale_dtype=container.scale_dtype or weight_dtype(prepared.source.config),
        lowest_zero=container.lowest_zero,
        allowed=frozenset(recipe.allow),
        transforms=layer_transforms(recipe, prepared.source.config),
        kv_cache=KV_CACHE_SCHEMES[recipe.kv_cache],
    )


def _write_weights(run: _Run, directory: Path) -> list[ModuleReport]:
    """Round layer by layer; then copy what stays as it is. Each source tensor is read in turn."""
    source, layers = run.prepared.source, len(run.prepared.skeleton.layers)
    layers += len(run.prepared.resolution.tables.by_module())
    container, modules = CONTAINERS[run.recipe.format], list[ModuleReport]()
    written: set[str] = set()
    added: dict[str, npt.NDArray[Any]] = {}
    from quant.sequence import layer_results
    from quant.workers import fixed_division

    with ShardedWriter(directory) as writer, fixed_division() as workers:
        run.on_progress(0, layers, "layers")
        results = layer_results(run.prepared, run.settings, run.calibration, run.store, workers)
        for index, layer in enumerate(results):
            for name, array in layer.changed.items():
                writer.add(name, array)
                written.add(name)
            added |= layer.added
            for module, result in layer.rounded.items():
                for name, array in container.encode(module, result.tensor).items():
                    writer.add(name, array)
                written.add(f"{module}.weight")
                modules.append(module_report(run.tasks[module], result))
            run.on_progress(index + 1, layers, "layers")
        assert written >= {f"{module}.weight" for module in run.tasks}
        for tensor in run.prepared.plan.tensors:
            if tensor.name not in written:
                kept = added.get(tensor.name)
                value = source.load(tensor.name) if kept is None else kept
                assert not isinstance(value, QuantizedTensor)
                writer.add(tensor.name, value)
        _check_left_out(run.prepared)
    return modules


def _check_left_out(prepared: Prepared) -> None:
    """A tied tensor that is stored twice may be stored once only if both copies agree."""
    source, tied = prepared.source, prepared.skeleton.tied_names()
    for name in prepared.left_out:
        if name not in tied:
            continue
        copy, kept = source.load_raw(name), source.load_raw(tied[name])
        if copy.dtype != kept.dtype or copy.tobytes() != kept.tobytes():
            raise FileFormatError(
                source.path,
                f"'{name}' differs from '{tied[name]}', though config.json ties them; set "
                "tie_word_embeddings to false to keep both",
            )


def _write_config(run: _Run, directory: Path) -> None:
    container, prepared = CONTAINERS[run.recipe.format], run.prepared
    kv_cache = KV_CACHE_SCHEMES[run.recipe.kv_cache]
    quantization = container.config(prepared.linears, run.recipe.gptq.damping, kv_cache)
    if run.recipe.format == "ggml":
        quantization["mix"] = run.recipe.scheme.ggml_type
    config = {**prepared.source.config, "quantization_config": quantization}
    _write_json(directory / "config.json", config)
    if container.extra_file:
        _write_json(directory / container.extra_file, quantization)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _silent(done: int, total: int, what: str) -> None:
    """Progress that nobody asked for."""
