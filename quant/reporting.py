"""The report of a run, from what the run knows."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quant.preflight import Prepared
from quant.recipe import Recipe
from quant.report import REPORT_VERSION, ModuleReport, QuantizeReport
from quant.tasks import LinearTask

if TYPE_CHECKING:
    from quant.calibration import CalibrationSet
    from quant.rounding_algorithms.result import Rounded


def module_report(task: LinearTask, result: "Rounded") -> ModuleReport:
    """How `task` ended."""
    return ModuleReport(
        module=task.module,
        scheme=str(task.scheme),
        algorithm=task.algorithm,
        state=result.state,
        weight_error=result.weight_error,
        output_error=result.output_error,
        damping=result.damping,
        dead_columns=result.dead_columns,
        tokens=result.tokens,
        digest=result.tensor.digest(),
        condition=result.condition,
        clip_ratio=result.clip_ratio,
        transform=result.transform,
    )


def _kept_report(prepared: Prepared) -> list[ModuleReport]:
    source = prepared.source
    return [
        ModuleReport(
            module=module,
            scheme=str(source.scheme(f"{module}.weight")),
            algorithm="none",
            state=f"kept in 16 bit: {why}",
            weight_error=None,
            output_error=None,
            damping=None,
            dead_columns=0,
            tokens=0,
            digest=None,
        )
        for module, why in prepared.resolution.kept.items()
        if f"{module}.weight" in source.names()
    ]


def whole_report(
    prepared: Prepared,
    recipe: Recipe,
    data: "CalibrationSet | None",
    modules: Sequence[ModuleReport],
    directory: Path,
) -> QuantizeReport:
    """Of a run that wrote `directory`; seconds are still to be filled in."""
    import torch

    names = prepared.source.names()
    stored = [tensor for tensor in prepared.plan.tensors if tensor.name in names]
    parameters = sum(math.prod(tensor.shape) for tensor in stored)
    payload = prepared.plan.total_bytes
    used: dict[str, object] = {"source": "none"}
    if data is not None:
        samples, tokens = data.tokens.shape
        used = {
            "source": data.source,
            "sha256": data.sha256,
            "samples": samples,
            "tokens": tokens,
            "seed": recipe.calibration.seed,
        }
    return QuantizeReport(
        version=REPORT_VERSION,
        model=prepared.source.path.name,
        recipe=recipe.model_dump(mode="json"),
        calibration=used,
        threads=torch.get_num_threads(),
        bytes=sum(path.stat().st_size for path in directory.glob("*.safetensors")),
        parameters=parameters,
        bits_per_weight=round(8 * payload / parameters, 4),
        seconds=0.0,
        notes=prepared.plan.notes,
        modules=(*modules, *_kept_report(prepared)),
    )


def lasting(report: QuantizeReport) -> dict[str, Any]:
    """The report without what differs between two runs of the same thing."""
    data = asdict(report)
    del data["seconds"]
    return data
