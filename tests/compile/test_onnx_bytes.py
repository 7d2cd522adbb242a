"""Nibbles, against the onnx package's own packing."""

import numpy as np
import onnx
import onnx.numpy_helper
from hypothesis import given
from hypothesis import strategies as st

from compile.onnx_bytes import pack_int4, packed_bytes, unpack_int4


@given(st.lists(st.integers(-8, 7), max_size=40), st.integers(1, 3))
def test_nibbles_come_back_and_onnx_reads_them(values: list[int], rows: int) -> None:
    codes = np.array(values * rows, np.int8).reshape(rows, -1)
    packed = pack_int4(codes)
    assert packed.nbytes == packed_bytes("int4", codes.shape)
    np.testing.assert_array_equal(unpack_int4(packed, codes.shape), codes)
    tensor = onnx.TensorProto(
        data_type=onnx.TensorProto.INT4, dims=codes.shape, raw_data=packed.tobytes()
    )
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), codes)
