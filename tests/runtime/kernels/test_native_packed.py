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
from quant.format.stored import PackedRows, Plane, StoredIntegers, dense_rows
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
    same(pack_stored(stored, POOLS[2], None, quads).matrix, expected)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("quads", [True, False])
def test_integers_arrive_as_a_file_has_them(kind: GgmlType, quads: bool) -> None:
    """With scales of 1, the numbers of a matrix are its integers; of any bytes."""
    random = np.random.default_rng(7)
    rows, columns = 70, 3 * kind.block if kind.block > 32 else 320
    size = columns // kind.block * kind.block_bytes
    data = random.integers(0, 256, (rows, size), dtype=np.uint8)
    stored, decoded = (make(kind, data, (rows, columns)) for make in (stored_integers, decode))
    assert isinstance(stored, StoredIntegers) and isinstance(decoded, QuantizedTensor)
    groups = (rows, len(stored.group_starts()) - 1)
    plain = replace(
        stored,
        scale=np.ones(groups, np.float32),
        minimum=None if stored.minimum is None else np.zeros(groups, np.float32),
        sub_scale=None,
        sub_minimum=None,
    )
    found = pack_stored(plain, POOLS[2], None, quads).matrix
    assert found.in_quads == quads
    np.testing.assert_array_equal(found.dequantize(), decoded.codes.astype(np.float32))


@given(
    st.integers(2, 8),
    st.integers(1, 130),
    st.integers(1, 20),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_words_of_any_bits_are_read_turned_or_not(
    bits: int, rows: int, words: int, quads: bool, seed: int
) -> None:
    """As GPTQ has them: word by word, those of all rows side by side."""
    columns = 64 * words // (1 if bits in (3, 5, 6, 7) else bits)  # words of whole blocks
    codes = np.random.default_rng(seed).integers(
        -(1 << (bits - 1)), 1 << (bits - 1), (rows, columns), dtype=np.int8
    )
    packed = pack_signed(codes, bits)
    scheme = IntScheme(bits, True, PerChannel())
    scale = np.ones((rows, 1), np.float32)
    turned = np.ascontiguousarray(packed.T).view(np.uint8)
    for data, is_turned in ((packed.view(np.uint8), False), (turned, True)):
        rows_of = dense_rows(data, bits, columns, is_turned)
        assert rows_of is not None
        stored = StoredIntegers(scheme, (rows, columns), rows_of, scale)
        found = pack_stored(stored, POOLS[2], None, quads).matrix.dequantize()
        np.testing.assert_array_equal(found, codes.astype(np.float32))


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
    found = pack_stored(stored, POOLS[2], None, quads).matrix
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
        lambda rows: replace(rows, planes=[Plane(2, 16, 16, 0)]),
        lambda rows: replace(rows, planes=[Plane(2, 36, 1, 9)]),
        lambda rows: replace(rows, turned=True),
        lambda rows: replace(rows, data=rows.data[:, :-1].copy()),
    ],
)
def test_planes_that_leave_their_blocks_are_refused(
    broken: Callable[[PackedRows], PackedRows],
) -> None:
    stored = stored_integers(Q4_0, np.zeros((4, 2 * Q4_0.block_bytes), np.uint8), (4, 64))
    assert stored is not None
    with pytest.raises(ValueError, match="planes do not fit"):
        pack_stored(replace(stored, rows=broken(stored.rows)), POOLS[1])


def test_scales_must_be_as_many_as_rows() -> None:
    kind = TYPE_BY_NAME["Q8_0"]
    stored = stored_integers(kind, np.zeros((4, kind.block_bytes), np.uint8), (4, 32))
    assert stored is not None
    with pytest.raises(ValueError, match="a row for each of the codes"):
        pack_stored(replace(stored, scale=stored.scale[:3]), POOLS[1])
