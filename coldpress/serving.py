"""From what an operator asks for to a registry of models: checked before anything is loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.loading import (
    DEFAULT_MACHINE,
    Machine,
    OnNote,
    open_served,
    payload_bytes,
)
from quant.format.errors import InputError
from runtime.engine.options import EngineOptions

if TYPE_CHECKING:
    from compile.model import Model
    from runtime.server.registry import Registry
    from runtime.server.registry_models import Loaded, ModelSettings
    from runtime.server.registry_names import Alias, Shadow
    from runtime.worker.spec import ModelSpec

_PUBLISHED = ("perplexity", "tokens", "kld", "top1", "ppl_ratio", "bits_per_weight", "protocol")
"""Figures of an artifact's evaluation that clients see; where its text lay is not among them."""


@dataclass(frozen=True)
class ModelPlan:
    """One model to serve. on_demand: loaded by its first request, not at the start."""

    name: str
    path: Path
    machine: Machine = DEFAULT_MACHINE
    context: int | None = None
    kv_cache_bytes: int | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    on_demand: bool = False

    @property
    def spec(self) -> "ModelSpec":
        """What a worker is told."""
        from runtime.worker.spec import ModelSpec

        return ModelSpec(
            self.path,
            self.name,
            self.machine.plain,
            self.context,
            self.kv_cache_bytes,
            self.engine,
        )


@dataclass(frozen=True)
class ServerPlan:
    """All models of one server. idle_seconds: None keeps what is loaded. make_room: unload idle
    models where another one needs their memory."""

    models: Sequence[ModelPlan]
    aliases: "Sequence[Alias]" = ()
    shadows: "Sequence[Shadow]" = ()
    idle_seconds: float | None = None
    make_room: bool = False


def open_registry(plan: ServerPlan, on_note: OnNote | None = None) -> "Registry":
    """A registry whose models at the start are loaded; headers of all are read before.

    Raises InputError for the first model that cannot be served, with the arithmetic where memory
    does not suffice.
    """
    from runtime.machine import available_memory_bytes
    from runtime.server.registry import Registry
    from runtime.server.registry_memory import MemoryBudget
    from runtime.server.registry_names import check_names

    check_names([model.name for model in plan.models], plan.aliases, plan.shadows)
    budget = MemoryBudget(available_memory_bytes, unload_idle=plan.make_room)
    registry = Registry(
        [_settings(model, on_note) for model in plan.models],
        plan.aliases,
        shadows=plan.shadows,
        idle_seconds=plan.idle_seconds,
        make_room=budget,
    )
    at_start = [registry.models[model.name] for model in plan.models if not model.on_demand]
    try:
        budget.check_together(at_start)
        for model in at_start:
            registry.load(model.name)
    except BaseException:
        registry.close()
        raise
    return registry


def _settings(plan: ModelPlan, on_note: OnNote | None) -> "ModelSettings":
    from compile.open_model import open_model
    from runtime.server.registry_models import ModelSettings

    model = open_model(plan.path)
    longest = model.program.sizes.max_positions
    if plan.context is not None and plan.context > longest:
        raise InputError(
            f"a context of {plan.context} tokens is longer than the {longest} of '{plan.name}'; "
            "lower --context"
        )
    return ModelSettings(
        plan.name,
        partial(load, plan, on_note),
        needs=_needs(plan, model),
        card=_card(plan, model),
    )


def load(plan: ModelPlan, on_note: OnNote | None = None) -> "Loaded":
    """Load one model in a process of its own; raises what `open_served` raises."""
    from runtime.server.registry_models import Loaded

    return Loaded(*open_served(plan.spec, on_note))


def _needs(plan: ModelPlan, model: "Model") -> Mapping[str, int]:
    """Bytes by what they are for. Where the size of the KV cache is left open it counts as one
    context, the least that is of use; the worker takes more where there is more."""
    from runtime.loading import DEFAULT_CONTEXTS
    from runtime.worker.budget import plan_memory

    budget = plan_memory(plan.spec, model, free=0)
    if budget is None:
        return {}
    pool = budget.pool if plan.kv_cache_bytes else budget.pool // DEFAULT_CONTEXTS
    return {"weights": budget.weights, "KV cache": pool}


def _card(plan: ModelPlan, model: "Model") -> Mapping[str, Any]:
    """What /v1/models says: figures as the artifact's own manifest has them, where it has any."""
    from compile.manifest import MANIFEST, read_manifest

    directory, evaluation = model.directory, None
    if directory is not None and (directory / MANIFEST).is_file():
        found = read_manifest(directory).evaluation or {}
        evaluation = {name: found[name] for name in _PUBLISHED if name in found} or None
    return {
        "max_model_len": plan.context or model.program.sizes.max_positions,
        "format": model.kind,
        "family": model.program.family,
        "weight_bytes": payload_bytes(plan.path),
        "evaluation": evaluation,
    }


def named_path(text: str, resolve: Callable[[str], tuple[str, Path]]) -> tuple[str, Path]:
    """The name and path of `NAME=PATH` or of what `resolve` makes of anything else."""
    name, equals, path = text.partition("=")
    if equals and name and path and not Path(text).exists():
        return name, resolve(path)[1]
    return resolve(text)
