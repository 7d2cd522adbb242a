"""One model of a server: how it is loaded, and what state it is in."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from runtime.service import GenerationService

ModelState = Literal["unloaded", "loading", "ready", "unloading", "failed"]


@dataclass(frozen=True)
class Loaded:
    """A model that answers, and what frees its memory once its engine has been shut down. memory:
    bytes by what they are for, where that is known."""

    service: GenerationService
    close: Callable[[], None] = lambda: None
    memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSettings:
    """A model that can be loaded.

    load: blocks until it answers; raises an exception whose text tells the operator what to do.
    needs: bytes of memory that it takes, by what they are for; empty where nobody knows.
    on_demand: whether a request may load it.
    card: what /v1/models says of it besides its state, `max_model_len` for example.
    """

    name: str
    load: Callable[[], Loaded]
    needs: Mapping[str, int] = field(default_factory=dict)
    on_demand: bool = True
    card: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class ServedModel:
    """The books of one model; only the registry writes here, under its lock.

    in_use: requests that hold a lease. num_awaiting: requests that wait for a load to end.
    parked: unloaded by an operator, so that only an operator loads it again.
    changing: done when the load or unload that runs has ended, well or not.
    """

    settings: ModelSettings
    state: ModelState = "unloaded"
    loaded: Loaded | None = None
    in_use: int = 0
    num_awaiting: int = 0
    num_loads: int = 0
    load_seconds: float = 0.0
    last_used: float = 0.0
    parked: bool = False
    failure: Exception | None = None
    failed_at: float = 0.0
    changing: "Future[None] | None" = None

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def service(self) -> GenerationService | None:
        """The service of a model that answers; None for all others."""
        return self.loaded.service if self.loaded and self.state == "ready" else None


def already_loaded(service: GenerationService) -> ServedModel:
    """A model that is here to stay: whoever made it closes it, and nothing loads it again."""

    def load() -> Loaded:
        raise RuntimeError(f"'{service.model_name}' was given to the server as it is")

    card = {"max_model_len": service.max_positions}
    settings = ModelSettings(service.model_name, load, on_demand=False, card=card)
    return ServedModel(settings, "ready", Loaded(service))
