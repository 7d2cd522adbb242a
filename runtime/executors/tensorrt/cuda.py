"""The CUDA driver, through its C interface: it is there wherever there is an NVIDIA GPU, and needs
no package."""

import ctypes
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p
from typing import Any

import numpy.typing as npt

from quant.format.errors import ColdpressError, InputError

LIBRARY = "libcuda.so.1"
OUT_OF_MEMORY = 2
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
"""CUdevice_attribute: of the compute capability."""
NO_GPU = (
    "there is no NVIDIA GPU here ({why}); --backend onnx and --backend cpu serve the numbers that "
    "lie beside an engine, and --target tensorrt:smNN builds one for another machine"
)


def has_gpu() -> bool:
    """Whether the CUDA driver is installed and finds a GPU."""
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return bool(driver.cuInit(0) == 0)


class CudaDevice:
    """The first GPU. Raises InputError where there is none."""

    def __init__(self) -> None:
        try:
            self._driver = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise InputError(NO_GPU.format(why=f"{LIBRARY} is not installed")) from error
        device, context = c_int(), c_void_p()
        if code := self._driver.cuInit(0) or self._driver.cuDeviceGet(byref(device), 0):
            raise InputError(NO_GPU.format(why=f"CUDA error {code}"))
        self._device = device
        self.card = f"sm{self._attribute(CAPABILITY_MAJOR)}{self._attribute(CAPABILITY_MINOR)}"
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._context = context
        self.enter()
        stream = c_void_p()
        self._call("cuStreamCreate", byref(stream), 1)
        assert stream.value is not None
        self.stream: int = stream.value

    def enter(self) -> None:
        self._call("cuCtxSetCurrent", self._context)

    def free_bytes(self) -> int:
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def allocate(self, nbytes: int) -> int:
        address = c_uint64()
        code = self._driver.cuMemAlloc_v2(byref(address), c_size_t(nbytes))
        if code == OUT_OF_MEMORY:
            raise InputError(
                f"the GPU has no {nbytes:,} bytes left ({self.free_bytes():,} are free); give the "
                "KV cache less memory"
            )
        self._check("cuMemAlloc_v2", code)
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", c_uint64(address))

    def zero(self, address: int, nbytes: int) -> None:
        self._call("cuMemsetD8Async", c_uint64(address), 0, c_size_t(nbytes), self._stream())

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        source, size = c_void_p(array.ctypes.data), c_size_t(array.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", c_uint64(address), source, size, self._stream())

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        to, size = c_void_p(array.ctypes.data), c_size_t(array.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", to, c_uint64(address), size, self._stream())

    def copy(self, to: int, source: int, nbytes: int) -> None:
        ends, size = (c_uint64(to), c_uint64(source)), c_size_t(nbytes)
        self._call("cuMemcpyDtoDAsync_v2", *ends, size, self._stream())

    def wait(self) -> None:
        self._call("cuStreamSynchronize", self._stream())

    def close(self) -> None:
        self._call("cuStreamDestroy_v2", self._stream())
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _stream(self) -> c_void_p:
        return c_void_p(self.stream)

    def _attribute(self, number: int) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), number, self._device)
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._driver, name)(*arguments))

    def _check(self, name: str, code: int) -> None:
        if code:
            raise ColdpressError(f"{name} of the CUDA driver failed with error {code}")
