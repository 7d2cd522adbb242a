"""Which model a worker runs, and what it tells of it once it is loaded: plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runtime.engine.options import EngineOptions


@dataclass(frozen=True)
class ModelSpec:
    """Everything that a worker needs to load a model by itself.

    machine: keyword arguments of `load_executor` that say what runs the model. context: longest
    prompt and answer together; None for the model's own. kv_cache_bytes: memory of the page pool;
    None for the default of `load_executor`.
    """

    path: Path
    name: str
    machine: Mapping[str, str | int | bool | None] = field(default_factory=dict)
    context: int | None = None
    kv_cache_bytes: int | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)


@dataclass(frozen=True)
class WorkerFacts:
    """What the front must know of a loaded model in order to refuse requests by itself.

    num_pages: the reserved page 0 included. gives_hidden: whether it can make embeddings.
    weight_bytes: of all matrices as they are held. pool_bytes: of the page pool
    once all of it is used; 0 if the executor does not tell. memory: the arithmetic, one line;
    budget: the same in bytes.
    """

    pid: int
    vocab_size: int
    max_positions: int
    page_size: int
    num_pages: int
    gives_hidden: bool = False
    weight_bytes: int = 0
    pool_bytes: int = 0
    memory: str = ""
    budget: Mapping[str, int] = field(default_factory=dict)

    @property
    def pool_tokens(self) -> int:
        return (self.num_pages - 1) * self.page_size

    @property
    def usable_positions(self) -> int:
        """The longest context that both the model and the page pool hold, in tokens."""
        return min(self.max_positions, self.pool_tokens)
