"""Whether a model fits into memory, decided before it is loaded."""

from collections.abc import Callable

from quant.format.errors import InputError
from runtime.server.registry import Registry
from runtime.server.registry_models import ServedModel

SPARE_BYTES = 256 << 20
"""Left free by every load, for what requests take on top."""


class MemoryBudget:
    """Refuses a load that does not fit, or unloads idle models for it, the one that was used
    longest ago first.

    free_bytes: memory that could be taken now; 0 where nobody knows, and everything fits.
    """

    def __init__(
        self,
        free_bytes: Callable[[], int],
        *,
        unload_idle: bool = False,
        spare_bytes: int = SPARE_BYTES,
    ) -> None:
        self._free_bytes = free_bytes
        self._unload_idle = unload_idle
        self._spare_bytes = spare_bytes

    def __call__(self, model: ServedModel, registry: Registry) -> None:
        """InputError with the arithmetic if the model does not fit."""
        needed = sum(model.settings.needs.values())
        while needed and (free := self._free_bytes()) and free < needed + self._spare_bytes:
            idle = registry.idle_models() if self._unload_idle else []
            if not any(map(registry.unload_idle, idle[:1])):
                raise InputError(self._refusal(model, needed, free, registry))

    def _refusal(self, model: ServedModel, needed: int, free: int, registry: Registry) -> str:
        parts = ", ".join(f"{what} {_mb(size)}" for what, size in model.settings.needs.items())
        loaded = ", ".join(registry.ready_services())
        advice = f"unload another model ({loaded})" if loaded else "free some memory"
        return (
            f"'{model.name}' needs {_mb(needed)} of memory ({parts}) and {_mb(self._spare_bytes)} "
            f"to spare, but {_mb(free)} are free; {advice}, or give it a smaller KV cache"
        )


def _mb(size: int) -> str:
    return f"{size / 10**6:,.0f} MB"
