"""Whether a model fits into memory, decided before it is loaded."""

from collections.abc import Callable, Sequence

from quant.format.errors import InputError
from runtime.server.registry import Registry
from runtime.server.registry_models import ServedModel


class MemoryBudget:
    """Refuses a load that does not fit, or unloads idle models for it, the one that was used
    longest ago first.

    free_bytes: memory that could be taken now; 0 where nobody knows, and everything fits.
    spare_bytes: left free by every load, for what requests take on top.
    """

    def __init__(
        self,
        free_bytes: Callable[[], int],
        *,
        unload_idle: bool = False,
        spare_bytes: int,
    ) -> None:
        self._free_bytes = free_bytes
        self._unload_idle = unload_idle
        self._spare_bytes = spare_bytes

    def __call__(self, model: ServedModel, registry: Registry) -> None:
        """InputError with the arithmetic if the model does not fit."""
        needed = sum(model.settings.needs.values())
        while not self._fits(needed):
            idle = registry.idle_models() if self._unload_idle else []
            if not any(map(registry.unload_idle, idle[:1])):
                loaded = ", ".join(registry.ready_services())
                advice = f"unload another model ({loaded})" if loaded else "free some memory"
                raise InputError(self._refusal([model], needed, advice))

    def check_together(self, models: Sequence[ServedModel]) -> None:
        """InputError with the arithmetic if they do not all fit at the same time."""
        needed = sum(sum(model.settings.needs.values()) for model in models)
        if not self._fits(needed):
            advice = (
                "serve fewer models at a time, load some on demand"
                if models[1:]
                else ("free some memory")
            )
            raise InputError(self._refusal(models, needed, advice))

    def _fits(self, needed: int) -> bool:
        free = self._free_bytes()
        return not needed or not free or free >= needed + self._spare_bytes

    def _refusal(self, models: Sequence[ServedModel], needed: int, advice: str) -> str:
        names = " and ".join(f"'{model.name}'" for model in models)
        parts = ", ".join(
            f"{what} {_mb(size)}" for model in models for what, size in model.settings.needs.items()
        )
        return (
            f"{names} {'need' if models[1:] else 'needs'} {_mb(needed)} of memory ({parts}) and "
            f"{_mb(self._spare_bytes)} to spare, but {_mb(self._free_bytes())} are free; {advice}, "
            "or give it a smaller KV cache"
        )


def _mb(size: int) -> str:
    return f"{size / 10**6:,.0f} MB"
