"""Numbers that float16 does not hold are told of, or refused, before an engine is built."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from compile.onnx_proto import ExternalTensor, Graph
from compile.to_tensorrt.ranges import CHUNK, check_range
from quant.format.errors import UnsupportedModelError


def checked(directory: Path, name: str, values: npt.NDArray[Any]) -> tuple[str, ...]:
    """The notes about one tensor, which lies behind some other bytes."""
    (directory / "data").write_bytes(b"\xff" * 64 + values.tobytes())
    shape = values.shape
    tensor = ExternalTensor(name, values.dtype.name, shape, "data", 64, values.nbytes)
    return check_range(directory, Graph((), (), (), (tensor,)))


def test_scales_that_are_too_small_are_counted(tmp_path: Path) -> None:
    values = np.array([[0.01, 2.0**-14, 0.0], [1.5 * 2.0**-25, 0.3, 2.0**-24]], np.float32)
    (note,) = checked(tmp_path, "a.weight.scale", values)
    assert note.startswith("1 of 5 scales are too small")
    assert note.endswith("off by 33 %"), "1.5 * 2**-25 becomes 2**-24"


def test_ordinary_scales_are_not_worth_a_word(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(1e-4, 0.1, (50, 8)).astype(np.float32)
    assert checked(tmp_path, "a.weight.scale", values) == ()
    assert checked(tmp_path, "a.weight", np.array([1e-9, 2e-8], np.float32)) == ()


@pytest.mark.parametrize("name", ["a.weight", "a.bias", "a.weight.scale"])
def test_a_number_beyond_float16_is_refused(tmp_path: Path, name: str) -> None:
    for dtype in (np.float32, ml_dtypes.bfloat16):
        values = np.array([1.0, -65600.0], dtype)
        with pytest.raises(UnsupportedModelError, match=f"tensor {name} has numbers above 65504"):
            checked(tmp_path, name, values)


def test_the_last_number_of_a_large_tensor_is_looked_at(tmp_path: Path) -> None:
    values = np.zeros(CHUNK + 3, np.float32)
    values[-1] = 1e6
    with pytest.raises(UnsupportedModelError):
        checked(tmp_path, "a.weight", values)


def test_tables_of_rotations_stay_as_they_are(tmp_path: Path) -> None:
    assert checked(tmp_path, "rope.0.cos", np.array([1e6], np.float32)) == ()
