"""Codes read straight from a file's blocks make the very matrix that decoded codes make."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.format.gguf_blocks import SCHEMES, decode, stored_integers
from quant.format.gguf_types import F32, IQ4_NL, Q4_0, TYPE_BY_NAME, GgmlType
from quant.format.packing import pack_signed
from quant.format.scheme import IntScheme, PerChannel, PerGroup
from quant.format.stored import PackedRows, Plane, StoredIntegers
from quant.format.tensor import QuantizedTensor
from runtime.executors.cpu.weights import pack, pack_stored
from runtime.kernels.cpu._native import Matrix
from tests.runtime.kernels.harness import POOLS

KINDS = [kind for kind, scheme in SCHEMES.items() if isinstance(scheme, IntScheme)]


def same(found: Matrix, expected: Matrix) -> None:
    assert (found.nbytes, found.in_quads) == (expected.nbytes, expected.in_quads)
    np.testing.assert_array_equal(found.dequantize(), expected.dequantize())


@given(
    st.sampled_from(KINDS),
    st.integers(1, 130),
    st.integers(1, 11),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_blocks_are_read_as_they_are_decoded(
    kind: GgmlType, rows: int, blocks: int, quads: bool, seed: int
) -> None:
    """Of any bytes: halves that are no numbers among them."""
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (rows, blocks * kind.block_bytes), dtype=np.uint8)
    shape = rows, blocks * kind.block
    stored, decoded = stored_integers(kind, data, shape), decode(kind, data, shape)
    assert stored is not None and isinstance(decoded, QuantizedTensor)
    expected = pack(decoded, POOLS[2], None, quads).matrix
    same(pack_stored(stored, POOLS[2], quads).matrix, expected)


@given(
    st.integers(1, 70),
    st.integers(1, 600),
    st.sampled_from([32, 48, 0]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_words_of_nibbles_are_read_as_they_are_unpacked(
    rows: int, columns: int, group: int, asymmetric: bool, quads: bool, seed: int
) -> None:
    """As compressed-tensors has them; the last word of a row may be half empty."""
    random = np.random.default_rng(seed)
    scheme = IntScheme(4, not asymmetric, PerGroup(group) if group else PerChannel())
    groups = -(-columns // min(scheme.group_size(columns), columns))
    weight = QuantizedTensor(
        scheme,
        random.integers(-8, 8, (rows, columns), dtype=np.int8),
        random.standard_normal((rows, groups)).astype(np.float16),
        random.integers(-8, 8, (rows, groups), dtype=np.int8) if asymmetric else None,
    )
    words = pack_signed(weight.codes, 4).view(np.uint8)
    packed = PackedRows(words, 8, 4, [Plane(0, 4, 1, 4)], 8)
    stored = StoredIntegers(scheme, weight.shape, packed, weight.scale, weight.zero_point)
    found = pack_stored(stored, POOLS[2], quads).matrix
    same(found, pack(weight, POOLS[2], None, quads).matrix)


@pytest.mark.parametrize("kind", [F32, IQ4_NL])
def test_what_is_no_integer_is_decoded(kind: GgmlType) -> None:
    assert stored_integers(kind, np.zeros((2, kind.block_bytes), np.uint8), (2, kind.block)) is None


@pytest.mark.parametrize(
    "broken",
    [
        lambda rows: replace(rows, block=0),
        lambda rows: replace(rows, block=64),
        lambda rows: replace(rows, block_bytes=17),
        lambda rows: replace(rows, planes=[]),
        lambda rows: replace(rows, planes=[Plane(-1, 16, 16, 4)]),
        lambda rows: replace(rows, planes=[Plane(3, 16, 16, 4)]),
        lambda rows: replace(rows, planes=[Plane(2, 8, 8, 4)]),
        lambda rows: replace(rows, planes=[Plane(2, 16, 24, 4)]),
        lambda rows: replace(rows, planes=[Plane(2, 16, 16, 5)]),
        lambda rows: replace(rows, planes=[Plane(2, 16, 16, 4, 5)]),
        lambda rows: replace(rows, data=rows.data[:, :-1].copy()),
    ],
)
def test_planes_that_leave_their_blocks_are_refused(
    broken: Callable[[PackedRows], PackedRows],
) -> None:
    stored = stored_integers(Q4_0, np.zeros((4, 2 * Q4_0.block_bytes), np.uint8), (4, 64))
    assert stored is not None
    with pytest.raises(ValueError, match="planes do not fit"):
        pack_stored(replace(stored, rows=broken(stored.rows)), POOLS[1], True)


def test_scales_must_be_as_many_as_rows() -> None:
    kind = TYPE_BY_NAME["Q8_0"]
    stored = stored_integers(kind, np.zeros((4, kind.block_bytes), np.uint8), (4, 32))
    assert stored is not None
    with pytest.raises(ValueError, match="a row for each of the codes"):
        pack_stored(replace(stored, scale=stored.scale[:3]), POOLS[1], True)
