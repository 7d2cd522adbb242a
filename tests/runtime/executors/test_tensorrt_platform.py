"""The calls that are made to TensorRT and to the CUDA driver, with stand-ins for both."""

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quant.format.errors import ColdpressError, FileFormatError, InputError
from runtime.executors.tensorrt import cuda, platform
from runtime.executors.tensorrt.cuda import CudaDevice, has_gpu
from runtime.executors.tensorrt.platform import NvidiaPlatform, TensorRTContext


class Context:
    """An IExecutionContext that remembers what it was told."""

    def __init__(self, **refuses: bool) -> None:
        self.refuses = refuses
        self.calls: list[tuple[Any, ...]] = []

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.calls.append(("shape", name, shape))
        return not self.refuses.get("shape", False)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.calls.append(("address", name, address))
        return not self.refuses.get("address", False)

    def update_device_memory_size_for_shapes(self) -> int:
        self.calls.append(("size",))
        return 300

    def set_device_memory(self, address: int, nbytes: int) -> None:
        self.calls.append(("memory", address, nbytes))

    def execute_async_v3(self, stream: int) -> bool:
        self.calls.append(("run", stream))
        return not self.refuses.get("run", False)


class Package:
    """What is used of `tensorrt_rtx`, and of `tensorrt`, which has no CudaGraphStrategy."""

    __version__ = "9.9"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="ours")

    def __init__(self, context: Context | None, loads: bool = True) -> None:
        self.context, self.loads, self.read = context, loads, b""
        self.config = SimpleNamespace(strategy=None, cuda_graph_strategy=None)
        self.config.set_execution_context_allocation_strategy = self._strategy

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

        def __init__(self) -> None:
            pass

    def _strategy(self, strategy: str) -> None:
        self.config.strategy = strategy

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        def deserialize(raw: Any) -> Any:
            self.read = bytes(raw)
            if not self.loads:
                logger.log(1, "the plan  is of\nanother platform")
                return None
            return SimpleNamespace(
                create_runtime_config=lambda: self.config,
                create_execution_context=lambda config: self.context,
            )

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


def opened(package: Package, monkeypatch: pytest.MonkeyPatch) -> NvidiaPlatform:
    monkeypatch.setattr(platform, "load_package", lambda name: package)
    monkeypatch.setattr(platform, "CudaDevice", lambda: "the device")
    return NvidiaPlatform("tensorrt_rtx")


@pytest.mark.parametrize("graphs", [False, True])
def test_a_step_is_shapes_addresses_memory_and_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: bool
) -> None:
    context = Context()
    package: Any = Package(context)
    if graphs:
        package.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    opened_platform = opened(package, monkeypatch)
    assert opened_platform.version == "9.9"
    (tmp_path / "engine").write_bytes(b"bytes of an engine")
    loaded = opened_platform.load(tmp_path / "engine")
    assert package.read == b"bytes of an engine"
    assert package.config.strategy == "ours"
    assert package.config.cuda_graph_strategy == ("whole" if graphs else None)
    asked = []

    def scratch(nbytes: int) -> int:
        asked.append(nbytes)
        return 4096

    loaded.run({"x": (2, 3)}, {"x": 256, "y": 512}, 7, scratch)
    assert asked == [300]
    assert context.calls == [
        ("shape", "x", (2, 3)),
        ("address", "x", 256),
        ("address", "y", 512),
        ("size",),
        ("memory", 4096, 300),
        ("run", 7),
    ]
    context.calls.clear()
    loaded.run({"x": (2, 4)}, {"x": 256, "y": 768}, 7, scratch)
    told = [call for call in context.calls if call[0] in ("shape", "address")]
    assert told == [("shape", "x", (2, 4)), ("address", "y", 768)], "what has changed"


@pytest.mark.parametrize(
    ("refused", "sentence"),
    [
        ("shape", r"takes no x of shape \[2, 3\]"),
        ("address", "has no tensor x"),
        ("run", "failed to run a step"),
    ],
)
def test_what_tensorrt_refuses_is_said(refused: str, sentence: str) -> None:
    package = Package(Context(**{refused: True}))
    engine = package.Runtime(None).deserialize_cuda_engine(b"")
    context = TensorRTContext(package, None, engine)
    with pytest.raises(ColdpressError, match=sentence):
        context.run({"x": (2, 3)}, {"x": 256}, 7, lambda nbytes: 0)


def test_what_is_no_engine_is_refused_in_tensorrts_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engine").write_bytes(b"x")
    with pytest.raises(FileFormatError, match=r"TensorRT 9\.9: the plan is of another platform"):
        opened(Package(None, loads=False), monkeypatch).load(tmp_path / "engine")


def test_an_engine_without_a_context_is_refused() -> None:
    package = Package(None)
    with pytest.raises(ColdpressError, match="no execution context"):
        TensorRTContext(package, None, package.Runtime(None).deserialize_cuda_engine(b""))


class Driver:
    """libcuda: device memory is the host's. Sizes and addresses arrive as ctypes, results by
    reference, as in C."""

    def __init__(self, devices: int = 1, memory: int = 10_000) -> None:
        self.devices, self.left = devices, memory
        self.blocks: dict[int, Any] = {}
        self.calls: list[str] = []

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return 0 if self.devices else 100

    def cuDeviceGet(self, out: Any, number: int) -> int:  # noqa: N802
        out._obj.value = 0
        return 0 if number < self.devices else 101

    def cuDeviceGetAttribute(self, out: Any, number: int, device: Any) -> int:  # noqa: N802
        out._obj.value = {75: 12, 76: 1}[number]
        return 0

    def cuDevicePrimaryCtxRetain(self, out: Any, device: Any) -> int:  # noqa: N802
        out._obj.value = 11
        return 0

    def cuStreamCreate(self, out: Any, flags: int) -> int:  # noqa: N802
        out._obj.value = 22
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:  # noqa: N802
        free._obj.value = self.left
        return 0

    def cuMemAlloc_v2(self, out: Any, size: Any) -> int:  # noqa: N802
        if size.value > self.left:
            return 2
        block = ctypes.create_string_buffer(size.value)
        out._obj.value = ctypes.addressof(block)
        self.blocks[out._obj.value] = block
        return 0

    def cuMemFree_v2(self, address: Any) -> int:  # noqa: N802
        del self.blocks[address.value]
        return 0

    def cuMemsetD8Async(self, address: Any, byte: int, size: Any, stream: Any) -> int:  # noqa: N802
        ctypes.memset(address.value, byte, size.value)
        return self._in(stream)

    def cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> int:  # noqa: N802
        ctypes.memmove(to.value, source.value, size.value)
        return self._in(stream)

    cuMemcpyDtoHAsync_v2 = cuMemcpyDtoDAsync_v2 = cuMemcpyHtoDAsync_v2  # noqa: N815

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        self.calls.append(name)
        return lambda *arguments: 700 if name == self.__dict__.get("fails") else 0

    def _in(self, stream: Any) -> int:
        assert stream.value == 22
        return 0


def device_of(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    return CudaDevice()


def test_memory_is_copied_between_host_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    device = device_of(driver, monkeypatch)
    assert device.card == "sm121" and device.stream == 22 and has_gpu()
    address, other = device.allocate(64), device.allocate(64)
    device.upload(address, np.arange(8))
    device.zero(other, 64)
    device.copy(other, address + 16, 24)
    found = np.empty(8, np.int64)
    device.download(found, other)
    device.wait()
    assert found.tolist() == [2, 3, 4, 0, 0, 0, 0, 0]
    device.free(address)
    device.free(other)
    device.close()
    assert not driver.blocks
    assert driver.calls[-2:] == ["cuStreamDestroy_v2", "cuDevicePrimaryCtxRelease_v2"]


def test_a_gpu_without_memory_says_how_much_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no 10,001 bytes left \(10,000 are free\)"):
        device_of(Driver(), monkeypatch).allocate(10_001)


def test_a_driver_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no NVIDIA GPU here .CUDA error 100"):
        device_of(Driver(devices=0), monkeypatch)
    assert not has_gpu()


def test_an_error_of_the_driver_names_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    driver: Any = Driver()
    device = device_of(driver, monkeypatch)
    driver.fails = "cuStreamSynchronize"
    with pytest.raises(ColdpressError, match=r"cuStreamSynchronize .* error 700"):
        device.wait()


def test_without_the_library_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-that-is-not-there.so")
    assert not has_gpu()
    with pytest.raises(InputError, match="is not installed"):
        CudaDevice()
