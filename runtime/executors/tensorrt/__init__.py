"""TensorRT engines behind the Executor's interface."""

from runtime.executors.tensorrt.executor import TensorRTExecutor

__all__ = ["TensorRTExecutor"]
