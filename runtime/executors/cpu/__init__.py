"""The native CPU executor: a Program lowered once, a step replayed in one native call."""

from runtime.executors.cpu.executor import CpuExecutor
from runtime.executors.cpu.support import check_supported

__all__ = ["CpuExecutor", "check_supported"]
