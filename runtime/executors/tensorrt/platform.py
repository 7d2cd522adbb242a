"""TensorRT itself: either package loads engines through the same calls."""

import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compile.engine_file import Builder
from compile.to_tensorrt.api import error_keeper, load_package
from quant.format.errors import ColdpressError, FileFormatError
from runtime.executors.tensorrt.cuda import CudaDevice


class NvidiaPlatform:
    """The package that built an engine, and the first GPU. Raises MissingExtraError, and InputError
    where there is no GPU."""

    def __init__(self, builder: Builder) -> None:
        self._trt = load_package(builder)
        self.version: str = self._trt.__version__
        self.device = CudaDevice()

    def load(self, engine: Path) -> "TensorRTContext":
        """The file is mapped, not read: TensorRT copies what it needs to the GPU."""
        problems = error_keeper(self._trt)
        runtime = self._trt.Runtime(problems)
        with engine.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            loaded = runtime.deserialize_cuda_engine(raw)
        if loaded is None:
            said = problems.first() or "it says nothing"
            raise FileFormatError(engine, f"is not loaded by TensorRT {self.version}: {said}")
        return TensorRTContext(self._trt, runtime, loaded)


class TensorRTContext:
    """Working memory is ours, and as large as the shapes at hand need: what the largest shapes of
    the profile need together is far more."""

    def __init__(self, trt: Any, runtime: Any, engine: Any) -> None:
        self._runtime, self._engine = runtime, engine
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if hasattr(trt, "CudaGraphStrategy"):
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._context = engine.create_execution_context(config)
        if self._context is None:
            raise ColdpressError("TensorRT made no execution context for the engine")
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def run(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
        stream: int,
        scratch: Callable[[int], int],
    ) -> None:
        context = self._context
        # Two for each layer are pages, which stay where they are.
        for name, shape in shapes.items():
            if self._shapes.get(name) != shape:
                if not context.set_input_shape(name, shape):
                    raise ColdpressError(f"the engine takes no {name} of shape {list(shape)}")
                self._shapes[name] = shape
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                if not context.set_tensor_address(name, address):
                    raise ColdpressError(f"the engine has no tensor {name}")
                self._addresses[name] = address
        needed = max(1, context.update_device_memory_size_for_shapes())
        context.set_device_memory(scratch(needed), needed)
        if not context.execute_async_v3(stream):
            raise ColdpressError("TensorRT failed to run a step")
