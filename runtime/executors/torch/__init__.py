"""The oracle; needs torch, so import it lazily."""

from quant.format.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401  (the one message for all that follows)
except ImportError as error:
    raise MissingExtraError("the torch executor", "torch", "quantize") from error

from runtime.executors.torch.executor import TorchExecutor, matmul_by_tiles

__all__ = ["TorchExecutor", "matmul_by_tiles"]
