"""From what an operator asks for to a registry of models: checked before anything is loaded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.loading import (
    DEFAULT_MACHINE,
    Machine,
    OnNote,
    StartedModel,
    check_context,
    payload_bytes,
)
from runtime.engine.options import EngineOptions

if TYPE_CHECKING:
    from compile.model import Model
    from runtime.server.registry import Registry
    from runtime.server.registry_models import Loaded, ModelSettings
    from runtime.server.registry_names import Alias, Shadow
    from runtime.worker.process import WorkerProcess
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


@contextmanager
def started_ahead(plan: ServerPlan) -> "Iterator[WorkerProcess | None]":
    """A process for the model that is loaded first, so that it imports what it needs while this
    one does; None where none is loaded at the start. It is ended if it was not used by then."""
    from runtime.worker.process import WorkerProcess

    first = next((model for model in plan.models if not model.on_demand), None)
    process = None if first is None else WorkerProcess(first.engine.max_running)
    try:
        yield process
    finally:
        if process is not None and not process.is_used:
            process.discard()


def open_registry(
    plan: ServerPlan, on_note: OnNote | None = None, ahead: "WorkerProcess | None" = None
) -> "Registry":
    """A registry whose models at the start are loaded; headers of all are read before. ahead: from
    `started_ahead`.

    Raises InputError for the first model that cannot be served, with the arithmetic where memory
    does not suffice.
    """
    from runtime.machine import HEADROOM_BYTES, available_memory_bytes
    from runtime.server.registry import Registry
    from runtime.server.registry_memory import MemoryBudget
    from runtime.server.registry_names import check_names

    check_names([model.name for model in plan.models], plan.aliases, plan.shadows)
    budget = MemoryBudget(
        available_memory_bytes, unload_idle=plan.make_room, spare_bytes=HEADROOM_BYTES
    )
    loaders = [_Loader(model, on_note) for model in plan.models]
    registry = Registry(
        [loader.settings() for loader in loaders],
        plan.aliases,
        shadows=plan.shadows,
        idle_seconds=plan.idle_seconds,
        make_room=budget,
    )
    at_start = [loader for loader in loaders if not loader.plan.on_demand]
    try:
        budget.check_together([registry.models[loader.plan.name] for loader in at_start])
        for loader in at_start:
            loader.process, ahead = ahead, None
            registry.load(loader.plan.name)
    except BaseException:
        registry.close()
        raise
    return registry


@dataclass
class _Loader:
    """Loads one model in a process of its own; raises what StartedModel raises. process, model:
    what the first load finds there already."""

    plan: ModelPlan
    on_note: OnNote | None
    process: "WorkerProcess | None" = None
    model: "Model | None" = None

    def settings(self) -> "ModelSettings":
        """What there is to know of the model before it is loaded."""
        from compile.open_model import open_model
        from runtime.server.registry_models import ModelSettings

        plan, model = self.plan, open_model(self.plan.path)
        check_context(model, plan.context, plan.name)
        if not plan.on_demand:
            self.model = model
        return ModelSettings(plan.name, self, needs=_needs(plan, model), card=_card(plan, model))

    def __call__(self) -> "Loaded":
        from runtime.server.registry_models import Loaded

        process, self.process = self.process, None
        model, self.model = self.model, None
        started = StartedModel(self.plan.spec, process)
        service = started.service(self.on_note, model)
        return Loaded(service, started.close, started.engine.wait_ready().budget)


def _needs(plan: ModelPlan, model: "Model") -> Mapping[str, int]:
    """Bytes by what they are for. Where the size of the KV cache is left open it counts as one
    context, the least that is of use; the worker takes more where there is more."""
    from runtime.worker.budget import plan_memory

    budget = plan_memory(plan.spec, model, free=0)
    return {} if budget is None else budget.least()


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
