"""Models whose loading a test decides: how long it takes, and whether it works."""

import asyncio
import threading
from collections.abc import Callable

from runtime.engine.request import Request, TokenEvent
from runtime.engine.stats import EngineStats
from runtime.server.registry import Registry
from runtime.server.registry_models import Loaded, ModelSettings
from runtime.service import GenerationService
from tests.runtime.server.harness import tiny_tokenizer


class FakeEngine:
    """An engine that is alive until it is shut down, and never asked anything."""

    def __init__(self) -> None:
        self.is_alive = self.is_ready = True

    def submit(self, request: Request, on_event: Callable[[TokenEvent], None]) -> None:
        raise AssertionError("nothing is generated in these tests")

    def abort(self, request_id: str) -> None: ...

    def stats(self) -> EngineStats:
        return EngineStats()

    def seconds_without_progress(self) -> float:
        return 0.0

    def shutdown(self, drain_seconds: float = 30.0) -> bool:
        self.is_alive = False
        return True


class FakeModel:
    """`gate` holds every load; `failure` is what the next loads raise."""

    def __init__(self, name: str, *, needs: int = 0) -> None:
        self.name = name
        self.needs = {"weights": needs} if needs else {}
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.num_loads = self.num_closes = 0

    @property
    def settings(self) -> ModelSettings:
        return ModelSettings(self.name, self.load, needs=self.needs)

    def load(self) -> Loaded:
        assert self.gate.wait(60)
        if self.failure is not None:
            raise self.failure
        self.num_loads += 1
        engine = FakeEngine()

        def close() -> None:
            assert not engine.is_alive, "closed under a running engine"
            self.num_closes += 1

        return Loaded(GenerationService(engine, tiny_tokenizer(), None, self.name, 100), close)


def use(registry: Registry, name: str) -> GenerationService:
    """What a request does first; `registry.release` is what it does last."""
    return asyncio.run(registry.acquire(registry.resolve(name)))
