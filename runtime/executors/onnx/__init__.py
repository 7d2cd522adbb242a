"""ONNX Runtime behind the Executor's interface; needs onnxruntime, so import it lazily."""

from quant.format.errors import MissingExtraError

try:
    import onnxruntime as _onnxruntime  # noqa: F401  (the one message for all that follows)
except ImportError as error:
    raise MissingExtraError("the ONNX executor", "onnxruntime", "onnx") from error

from runtime.executors.onnx.executor import OnnxExecutor

__all__ = ["OnnxExecutor"]
