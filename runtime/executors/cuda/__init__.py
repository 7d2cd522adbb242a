"""The executor for NVIDIA GPUs; needs torch and triton, so import it lazily."""

from quant.format.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
    import triton as _triton  # noqa: F401  (the one message for all that follows)
except ImportError as error:
    raise MissingExtraError("the cuda executor", error.name or "triton", "cuda") from error

from runtime.executors.cuda.executor import CudaExecutor, stored_number
from runtime.executors.cuda.graphs import CudaRecorder
from runtime.executors.cuda.memory import pages_that_fit, require_gpu

__all__ = ["CudaExecutor", "CudaRecorder", "pages_that_fit", "require_gpu", "stored_number"]
