"""One model shared by several processes (tensor parallelism); needs torch, so import it lazily."""

from quant.format.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401  (the one message for all that follows)
except ImportError as error:
    raise MissingExtraError("tensor parallelism", "torch", "cuda") from error

from runtime.parallel.leading import LeadingExecutor, start_parallel

__all__ = ["LeadingExecutor", "start_parallel"]
