"""Exceptions that cross from a worker to the front, and the plain words for a worker's death."""

import signal

from quant.format import errors
from quant.format.errors import ColdpressError, FileFormatError
from runtime.worker.messages import LoadFailed
from runtime.worker.spec import ModelSpec

_KINDS: dict[str, type[ColdpressError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, ColdpressError)
}


class WorkerDied(ColdpressError):  # noqa: N818
    """A worker's process ended before its model was loaded."""


def described(error: Exception) -> LoadFailed:
    """What is sent of an exception: its sentence, and enough to raise the same one again."""
    if isinstance(error, OSError):
        name = None if error.filename is None else str(error.filename)
        return LoadFailed("OSError", error.strerror or str(error), error.errno, name)
    if isinstance(error, ColdpressError):
        known = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS)
        return LoadFailed(known, str(error))
    return LoadFailed(type(error).__name__, str(error) or type(error).__name__)


def exception_of(failure: LoadFailed, spec: ModelSpec) -> Exception:
    """The exception that a worker met, with the same sentence."""
    if failure.kind == "OSError":
        return OSError(failure.errno or 0, failure.message, failure.filename)
    kind = _KINDS.get(failure.kind)
    if kind is None:
        return WorkerDied(f"{spec.path}: could not be loaded: {failure.kind}: {failure.message}")
    # Some take their sentence in parts, which are one by now.
    error = kind.__new__(kind)
    Exception.__init__(error, failure.message)
    return error


def death_in_load(spec: ModelSpec, exit_code: int) -> ColdpressError:
    """What to tell of a worker that ended while it loaded a model."""
    if exit_code == -signal.SIGBUS:
        return FileFormatError(
            spec.path, "was cut short, or its disk failed, while it was read; copy it anew"
        )
    return WorkerDied(
        f"{spec.path}: the process that loads it {how_it_ended(exit_code)}; give it more memory, "
        "or a smaller --kv-cache"
        if exit_code == -signal.SIGKILL
        else f"{spec.path}: the process that loads it {how_it_ended(exit_code)}"
    )


def how_it_ended(exit_code: int | None) -> str:
    """The end of a process, as the end of a sentence about it."""
    if exit_code is None:
        return "closed its connection"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    hint = {
        "SIGKILL": ", which is how the system ends it when memory runs out",
        "SIGBUS": ": a file that it had mapped was cut short, or its disk failed",
    }
    return f"was ended by {name}{hint.get(name, '')}"
