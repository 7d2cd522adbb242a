"""coldpress: from a checkpoint to a served artifact.

    import coldpress

    coldpress.quantize("model/", "model-int4/", recipe="w4a16")
    coldpress.build("model-int4/", "model-gguf/")
    coldpress.LLM("model-gguf/").generate(["The capital of France is"])

Importing this module imports nothing else; each name loads what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coldpress.api import LLM, Completion, build, evaluate, pull, quantize, verify

__all__ = ["LLM", "Completion", "build", "evaluate", "pull", "quantize", "verify"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("coldpress.api"), name)
    raise AttributeError(f"module 'coldpress' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
