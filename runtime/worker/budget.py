"""How much memory a model's pages may take, decided before its weights are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quant.format.errors import InputError
from runtime.engine.options import EngineOptions
from runtime.footprint import weight_bytes
from runtime.kv_cache import kv_bytes_per_page, resolve_kv_cache_type
from runtime.loading import DEFAULT_CONTEXTS, DEFAULT_SHARE, resolve_backend
from runtime.machine import HEADROOM_BYTES
from runtime.worker.spec import ModelSpec

if TYPE_CHECKING:
    from compile.model import Model

PAGE_SIZE = 32


@dataclass(frozen=True)
class Budget:
    """Bytes. draft: of the draft model, its pool included. least_pool: what is of use, one context
    where nothing else is asked for. `free` is what could be taken before anything was loaded, 0
    where nobody knows."""

    weights: int
    draft: int
    pool: int
    least_pool: int
    pool_tokens: int
    headroom: int
    free: int

    @property
    def needed(self) -> int:
        return self.weights + self.draft + self.pool + self.headroom

    def least(self) -> dict[str, int]:
        """Bytes without which there is no loading it, by what they are for; headroom aside."""
        draft = {"draft model": self.draft} if self.draft else {}
        return {"weights": self.weights, **draft, "KV cache": self.least_pool}

    def as_object(self) -> dict[str, int]:
        """The arithmetic for programs."""
        names = ("weights", "draft", "pool", "pool_tokens", "headroom", "needed", "free")
        return {name: getattr(self, name) for name in names}

    def sentence(self) -> str:
        draft = f"draft model {_mb(self.draft)} + " if self.draft else ""
        parts = (
            f"weights {_mb(self.weights)} + {draft}KV cache {_mb(self.pool)} "
            f"({self.pool_tokens:,} tokens) + headroom {_mb(self.headroom)} = {_mb(self.needed)}"
        )
        return f"{parts} of {_mb(self.free)} free" if self.free else parts


def plan_memory(spec: ModelSpec, model: "Model", free: int) -> Budget | None:
    """What the model will take of `free` bytes: the pool as asked for; by default sixteen
    contexts, a quarter of what is free or what the weights leave, whichever is least.

    None for backends whose weights and pages lie in a GPU's memory. Raises InputError with the
    arithmetic where it cannot fit, or not even one context fits.
    """
    backend = resolve_backend(model, str(spec.machine.get("backend", "auto")))
    if backend not in ("cpu", "torch", "onnx"):
        return None
    page_bytes = _page_bytes(spec.machine, model, backend)
    context = spec.context or model.program.sizes.max_positions
    least = _pages(context)
    weights = weight_bytes(model)
    if spec.kv_cache_bytes is not None:
        pages = least = spec.kv_cache_bytes // page_bytes
        draft = _draft_bytes(spec.engine, pages)
    else:
        pages = _pages(DEFAULT_CONTEXTS * model.program.sizes.max_positions)
        draft = _draft_bytes(spec.engine, pages)
        if free:
            rest = max(0, free - weights - draft - HEADROOM_BYTES)
            pages = max(least, min(pages, min(free // DEFAULT_SHARE, rest) // page_bytes))
    tokens = max(0, pages - 1) * PAGE_SIZE
    sizes = (weights, draft, pages * page_bytes, least * page_bytes)
    budget = Budget(*sizes, tokens, HEADROOM_BYTES, free)
    if free and budget.needed > free:
        raise InputError(
            f"{spec.path}: does not fit into memory: {budget.sentence()}; lower --kv-cache or "
            "--context, or give it more memory"
        )
    return budget


def _draft_bytes(options: EngineOptions, num_pages: int) -> int:
    """Of the model that guesses, beside a pool of so many pages; 0 where there is none."""
    if options.draft_model is None:
        return 0
    from compile.open_model import open_model
    from runtime.draft_loading import draft_pages

    model = open_model(Path(options.draft_model))
    page_bytes = _page_bytes({}, model, resolve_backend(model, "auto"))
    return weight_bytes(model) + page_bytes * draft_pages(model, options, num_pages, PAGE_SIZE)


def _page_bytes(machine: Mapping[str, object], model: "Model", backend: str) -> int:
    exact = bool(machine.get("exact", False))
    number = resolve_kv_cache_type(str(machine.get("kv_cache_type", "auto")), backend, exact)
    return kv_bytes_per_page(model.program, PAGE_SIZE, number if backend == "cpu" else "float32")


def _pages(tokens: int) -> int:
    """Those that hold so many tokens, and the reserved one."""
    return -(-tokens // PAGE_SIZE) + 1


def _mb(size: int) -> str:
    return f"{size / 10**6:,.0f} MB"
