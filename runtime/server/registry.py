"""The models of one server: which there are, which are loaded, and how many requests use each."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future

from runtime.server import registry_errors as errors
from runtime.server.registry_models import (
    ModelSettings,
    ModelState,
    ServedModel,
    already_loaded,
)
from runtime.server.registry_names import Alias, Shadow, check_names
from runtime.service import GenerationService

_MAX_AWAITING = 64
"""Requests that wait for one model's load; further ones are told to come back."""
_RETRY_SECONDS = 10.0
"""A load that failed is not tried again for requests before that time has passed."""
_MAX_TURNS = 4
"""Times that a waiting request sees its model loaded and taken away again before it gives up."""

MakeRoom = Callable[[ServedModel, "Registry"], None]


class Registry:
    """Loads models when they are asked for and unloads them when nobody is.

    Every method may be called from any thread; `acquire` belongs to an event loop. Loads run one
    after the other on threads of their own, so that two of them cannot count on the same memory.
    The first model answers requests that name none.

    idle_seconds: models that no request used for so long are unloaded; None for never.
    make_room: called before each load; raises if the model does not fit into memory.
    random: numbers in [0, 1), which choose among the models of a weighted alias.
    """

    def __init__(
        self,
        models: Iterable[ModelSettings | ServedModel],
        aliases: Iterable[Alias] = (),
        *,
        shadows: Iterable[Shadow] = (),
        idle_seconds: float | None = None,
        make_room: MakeRoom = lambda model, registry: None,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
    ) -> None:
        served = [one if isinstance(one, ServedModel) else ServedModel(one) for one in models]
        self.models: Mapping[str, ServedModel] = {model.name: model for model in served}
        self.aliases: Mapping[str, Alias] = {alias.name: alias for alias in aliases}
        assert len(self.models) == len(served) > 0, "models need names of their own"
        self.shadows = tuple(shadows)
        check_names(self.models, self.aliases.values(), self.shadows)
        self._idle_seconds = idle_seconds
        self._make_room = make_room
        self._clock = clock
        self._random = random
        self._changed = threading.Condition()
        self._one_load = threading.Lock()
        self._draining = False
        if idle_seconds is not None:
            threading.Thread(target=self._watch_idle, name="coldpress-idle", daemon=True).start()

    @classmethod
    def of(cls, services: Iterable[GenerationService]) -> "Registry":
        """A registry of models that are loaded and stay so; the caller closes their executors."""
        return cls(map(already_loaded, services))

    def model(self, name: str | None) -> ServedModel:
        """The model of that name; without one, the first. ApiError 404 for others."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise errors.unknown_model(name, (*self.models, *self.aliases))
        return self.models[name]

    def resolve(self, name: str | None, sticky: str | None = None) -> ServedModel:
        """As `model`, and for an alias one of its models, by weight: at random, or always the same
        one for the same `sticky` (a user of an application, whose prompts have much in common)."""
        alias = None if name is None else self.aliases.get(name)
        if alias is None:
            return self.model(name)
        point = self._random() if sticky is None else alias.point_of(sticky)
        return self.models[alias.choose(point)]

    def ready_services(self) -> dict[str, GenerationService]:
        """The services of all models that answer at this moment, by name."""
        with self._changed:
            found = ((name, model.service) for name, model in self.models.items())
            return {name: service for name, service in found if service is not None}

    def acquire_now(self, model: ServedModel) -> GenerationService | None:
        """The model's service if it answers, else None; `release` it when the answer is out."""
        with self._changed:
            if model.service is not None:
                model.in_use += 1
            return model.service

    async def acquire(self, model: ServedModel) -> GenerationService:
        """As `acquire_now`, but a model that is not loaded is loaded first.

        ApiError 503 where it cannot be loaded, 429 where too many requests wait for its load.
        """
        for _ in range(_MAX_TURNS):
            with self._changed:
                service = self.acquire_now(model)
                if service is not None:
                    return service
                changing = self._change_to_await(model)
                model.num_awaiting += 1
            try:
                await asyncio.shield(asyncio.wrap_future(changing))
            finally:
                with self._changed:
                    model.num_awaiting -= 1
        raise errors.too_many_waiting(model)

    def release(self, model: ServedModel) -> None:
        with self._changed:
            model.in_use -= 1
            model.last_used = self._clock()
            self._changed.notify_all()

    def load(self, name: str) -> None:
        """Load a model and wait for it, also one that an operator unloaded; nothing to do for one
        that is loaded. Raises what its loader raises, and ApiError 409 while it is unloaded."""
        model = self.model(name)
        with self._changed:
            if model.state == "unloading":
                raise errors.conflict(model, "is being unloaded; try again when it is")
            if model.state != "ready" and model.changing is None:
                self._start_load(model)
            changing = model.changing
        if changing is not None:
            changing.result()
        with self._changed:
            if model.state != "ready":
                raise model.failure or errors.not_loaded(model)

    def unload(self, name: str, drain_seconds: float = 30.0, *, force: bool = False) -> None:
        """Wait for the model's requests, then free its memory; only `load` brings it back.

        Requests that come meanwhile get 503. Those that still run after `drain_seconds` make this
        an ApiError 409, and the model stays; with `force` they get an error, and it goes.
        """
        model = self.model(name)
        with self._changed:
            if model.state in ("loading", "unloading"):
                raise errors.conflict(model, f"is {model.state} right now; try again later")
            model.parked = True
            if model.state == "ready":
                self._begin_unload(model)
        if model.state != "unloading":
            return
        with self._changed:
            self._changed.wait_for(lambda: model.in_use == 0 or self._draining, drain_seconds)
            if model.in_use and not force:
                model.parked = False
                self._settle(model, "ready")
                raise errors.conflict(
                    model,
                    f"still answers {model.in_use} requests after {drain_seconds:g} s; wait "
                    "longer (drain_seconds), or end them with an error (force)",
                )
        self._finish_unload(model)

    def unload_idle(self, model: ServedModel) -> bool:
        """Free a model that nobody uses; the next request loads it again. False if it is in use."""
        with self._changed:
            if not self._is_idle(model):
                return False
            self._begin_unload(model)
        self._finish_unload(model)
        return True

    def idle_models(self) -> list[ServedModel]:
        """Loaded models that no request uses, the one that was used longest ago first."""
        with self._changed:
            idle = [model for model in self.models.values() if self._is_idle(model)]
            return sorted(idle, key=lambda model: model.last_used)

    def start_draining(self, drain_seconds: float) -> None:
        """Take no more requests and give the running ones that long; returns at once."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
        for service in self.ready_services().values():
            threading.Thread(
                target=service.engine.shutdown, args=(drain_seconds,), daemon=True
            ).start()

    def close(self) -> None:
        """End what still runs and free every model; nothing is loaded from now on."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            ready = [model for model in self.models.values() if model.state == "ready"]
            for model in ready:
                self._begin_unload(model)
        for model in ready:
            self._finish_unload(model)
        # A load that is under way ends on its own thread, which then closes what it loaded.

    def _change_to_await(self, model: ServedModel) -> "Future[None]":
        """What a request for a model that does not answer waits for; ApiError if for nothing."""
        if self._draining:
            raise errors.shutting_down()
        if model.parked:
            raise errors.not_loaded(model)
        if model.num_awaiting >= _MAX_AWAITING:
            raise errors.too_many_waiting(model)
        if model.changing is not None:
            return model.changing
        if model.state == "failed":
            left = model.failed_at + _RETRY_SECONDS - self._clock()
            if left > 0:
                raise errors.load_failed(model, left)
        if not model.settings.on_demand:
            raise errors.not_loaded(model)
        return self._start_load(model)

    def _start_load(self, model: ServedModel) -> "Future[None]":
        model.state, model.parked, model.changing = "loading", False, Future()
        thread = threading.Thread(
            target=self._load, args=(model,), name=f"coldpress-load-{model.name}", daemon=True
        )
        thread.start()
        return model.changing

    def _load(self, model: ServedModel) -> None:
        try:
            with self._one_load:
                self._make_room(model, self)
                start = self._clock()
                loaded = model.settings.load()
        except Exception as failure:
            with self._changed:
                model.failure, model.failed_at = failure, self._clock()
                self._settle(model, "failed")
            return
        with self._changed:
            model.loaded, model.failure = loaded, None
            model.num_loads += 1
            model.load_seconds = self._clock() - start
            model.last_used = self._clock()
            if not self._draining:
                self._settle(model, "ready")
                return
        self._finish_unload(model)

    def _begin_unload(self, model: ServedModel) -> None:
        model.state, model.changing = "unloading", Future()

    def _finish_unload(self, model: ServedModel) -> None:
        assert model.loaded is not None
        try:
            if model.loaded.service.engine.shutdown(0.0):
                model.loaded.close()
        finally:
            with self._changed:
                model.loaded = None
                self._settle(model, "unloaded")

    def _settle(self, model: ServedModel, state: ModelState) -> None:
        """The change has ended; whoever waits for it looks again."""
        model.state = state
        changing, model.changing = model.changing, None
        self._changed.notify_all()
        if changing is not None:
            changing.set_result(None)

    def _is_idle(self, model: ServedModel) -> bool:
        """Those who waited for its load may not have got around to using it yet."""
        used = model.in_use or model.num_awaiting
        return model.state == "ready" and not used and not self._is_fixed(model)

    @staticmethod
    def _is_fixed(model: ServedModel) -> bool:
        return not model.settings.on_demand

    def _watch_idle(self) -> None:
        assert self._idle_seconds is not None
        pause = min(30.0, self._idle_seconds / 4)
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._draining, pause):
                    return
            for model in self.idle_models():
                if self._clock() - model.last_used >= self._idle_seconds:
                    self.unload_idle(model)
