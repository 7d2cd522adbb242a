"""A platform for the TensorRT executor without TensorRT and without a GPU: device memory is the
host's, every access is checked, and the kept ONNX graph answers for the engine."""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from compile.engine_file import (
    ENGINE_FILE,
    Builder,
    EngineFacts,
    EngineLimits,
    ends_sha256,
)
from compile.manifest import file_sha256, write_manifest
from compile.model import Model
from compile.onnx_contract import DATA_FILE, GRAPH_FILE
from compile.onnx_proto import encode_graph, read_graph
from compile.open_model import open_model
from compile.to_onnx.build import build_model
from compile.to_tensorrt.experts import with_all_rows
from compile.to_tensorrt.halves import in_halves
from runtime.executors.tensorrt.interface import Device, EngineContext

VERSION, CARD = "1.2.3", "sm89"
LIMITS = EngineLimits(context=256, tokens=32, sequences=4, page_size=4, least_page_size=4)


def artifact_of(directory: Path, model: Model, limits: EngineLimits = LIMITS) -> Model:
    """What a build leaves behind, with bytes in the engine's place that nobody loads."""
    build_model(model, directory, version="test")
    graph = in_halves(with_all_rows(read_graph(directory / GRAPH_FILE, constants=True)))
    (directory / GRAPH_FILE).write_bytes(encode_graph(graph, "test"))
    (directory / ENGINE_FILE).write_bytes(bytes(range(256)) * 20)
    facts = EngineFacts(
        target="tensorrt:sm89",
        builder="tensorrt_rtx",
        builder_version=VERSION,
        cards=("sm86", CARD),
        graph_sha256=file_sha256(directory / GRAPH_FILE),
        data_bytes=(directory / DATA_FILE).stat().st_size,
        limits=limits,
        profile={"N": (2, 8, 1000)},
        engine_bytes=(directory / ENGINE_FILE).stat().st_size,
        ends_sha256=ends_sha256(directory / ENGINE_FILE),
        packed_bytes=1,
    )
    write_manifest(directory, "tensorrt", engine=facts.to_json())
    return open_model(directory)


class HostDevice:
    """Addresses are those of arrays; whatever lies outside one is refused."""

    stream = 77

    def __init__(self, card: str = CARD, nbytes: int = 1 << 24) -> None:
        self.card = card
        self.arrays: dict[int, npt.NDArray[np.uint8]] = {}
        self.open = True
        self._free = nbytes

    def enter(self) -> None:
        assert self.open

    def free_bytes(self) -> int:
        return self._free - sum(array.nbytes for array in self.arrays.values())

    def allocate(self, nbytes: int) -> int:
        array = np.full(nbytes, 0xA5, np.uint8)
        self.arrays[array.ctypes.data] = array
        return int(array.ctypes.data)

    def free(self, address: int) -> None:
        del self.arrays[address]

    def at(self, address: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """A view of device memory."""
        for start, array in self.arrays.items():
            if start <= address and address + nbytes <= start + array.nbytes:
                return array[address - start : address - start + nbytes]
        raise AssertionError(f"{nbytes} bytes at {address} are not all allocated")

    def zero(self, address: int, nbytes: int) -> None:
        self.at(address, nbytes)[:] = 0

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        self.at(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        ctypes.memmove(array.ctypes.data, self.at(address, array.nbytes).ctypes.data, array.nbytes)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        self.at(to, nbytes)[:] = self.at(source, nbytes)

    def wait(self) -> None:
        assert self.open

    def close(self) -> None:
        self.open = False


class GraphContext:
    """Runs the graph on what lies at the addresses."""

    def __init__(self, graph: Path, device: HostDevice) -> None:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
        self._types = {port.name: port.dtype for port in read_graph(graph).inputs}
        self._device = device
        self.seen: list[Mapping[str, tuple[int, ...]]] = []

    def run(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
        stream: int,
        scratch: Callable[[int], int],
    ) -> None:
        assert stream == self._device.stream and shapes.keys() == self._types.keys()
        self.seen.append(shapes)
        working = 100 * len(self.seen)
        self._device.at(scratch(working), working)[:] = 0xFF
        feeds = {name: self._array(name, shapes[name], addresses[name]) for name in shapes}
        names = [port.name for port in self._session.get_outputs()]
        assert {*names, *shapes} == addresses.keys()
        for name, result in zip(names, self._session.run(names, feeds), strict=True):
            self._device.upload(addresses[name], np.ascontiguousarray(result))

    def _array(self, name: str, shape: tuple[int, ...], address: int) -> npt.NDArray[Any]:
        dtype = np.dtype(self._types[name])
        nbytes = dtype.itemsize * int(np.prod(shape))
        # Pages begin wherever they were allocated, inputs where TensorRT wants them.
        return self._device.at(address, nbytes).view(dtype).reshape(shape)


@dataclass
class HostPlatform:
    """Stands for the package `tensorrt_rtx`; `contexts` are the engines it loaded."""

    version: str = VERSION
    host: HostDevice = field(default_factory=HostDevice)
    contexts: list[GraphContext] = field(default_factory=list)

    @property
    def device(self) -> Device:
        return self.host

    def load(self, engine: Path) -> EngineContext:
        self.contexts.append(GraphContext(engine.parent / GRAPH_FILE, self.host))
        return self.contexts[-1]

    def __call__(self, builder: Builder) -> "HostPlatform":
        """What the executor is given to open it."""
        assert builder == "tensorrt_rtx"
        return self


def with_limits(**changes: int) -> EngineLimits:
    return replace(LIMITS, **changes)
