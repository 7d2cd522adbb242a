"""The compiled search gives the bits of the NumPy one, on every instruction set and any threads."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from quant.format import ggml_search
from quant.format.ggml_grid import BlockGrid, Floats
from quant.format.ggml_search import round_blocks, search_blocks
from quant.format.gguf_blocks import encode
from quant.format.gguf_types import IQ4_XS, Q4_1, Q4_K, Q6_K, Q8_0, TYPE_BY_NAME, GgmlType
from quant.format.native import _blocks
from tests.quant.format.slow_search import nearest_codes, slow_search
from tests.quant.format.test_ggml_search import random_weight

KINDS = [TYPE_BY_NAME[name] for name in ggml_search.EFFORTS]
ISAS = _blocks.instruction_sets()


def assert_same(found: BlockGrid, expected: BlockGrid) -> None:
    theirs = expected.parts()
    assert found.parts().keys() == theirs.keys()
    for name, array in found.parts().items():
        assert np.array_equal(array, theirs[name], equal_nan=True), name


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_instruction_set_gives_the_bits_of_numpy(kind: GgmlType, isa: str) -> None:
    """37 rows are no multiple of any vector's lanes."""
    weight, importance = random_weight(37, 512, seed=11)
    for weights in (importance, None):
        expected = slow_search(kind, weight, weights)
        assert_same(search_blocks(kind, weight, weights, isa=isa), expected)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_known_scales_are_begun_with_alike(kind: GgmlType) -> None:
    weight, importance = random_weight(5, 256, seed=12)
    groups = 256 // (16 if kind.name in ("Q2_K", "Q3_K", "Q6_K") else 32)
    random = np.random.default_rng(1)
    scale = np.exp(random.normal(-6, 1, (5, groups))).astype(np.float32)
    known = scale, -7 * scale
    expected = slow_search(kind, weight, importance, known)
    for isa in ISAS:
        assert_same(search_blocks(kind, weight, importance, known, isa), expected)


EXTREMES = st.sampled_from([0.0, -0.0, 1e-45, 1e-38, -1e-30, 6e-8, 1.0, -1.0, 65504.0, -65504.0])


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(
    weight=arrays.arrays(np.float32, (2, 256), elements=EXTREMES, fill=st.just(np.float32(0))),
    power=st.integers(-3, 3),
)
@settings(max_examples=12, deadline=None)
def test_the_ends_of_the_numbers_are_alike(kind: GgmlType, weight: Floats, power: int) -> None:
    importance = np.float32(10) ** (power * np.linspace(-1, 1, 256, dtype=np.float32))
    expected = slow_search(kind, weight, importance)
    for isa in ISAS:
        assert_same(search_blocks(kind, weight, importance, isa=isa), expected)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_codes_are_those_nearest_on_the_grid(kind: GgmlType) -> None:
    weight, importance = random_weight(9, 512, seed=13)
    expected = nearest_codes(slow_search(kind, weight, importance), weight)
    assert np.array_equal(round_blocks("w", kind, weight, importance).codes, expected)


@pytest.mark.parametrize("kind", [Q4_1, Q4_K, Q6_K, IQ4_XS], ids=str)
def test_any_number_of_threads_gives_the_same_bytes(
    kind: GgmlType, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, importance = random_weight(40, 256, seed=14)
    alone = encode("w", kind, round_blocks("w", kind, weight, importance, threads=1))
    monkeypatch.setattr(ggml_search, "CHUNK_ELEMENTS", 3 * 256)
    for threads in (1, 2, 5, None):
        parts = round_blocks("w", kind, weight, importance, threads=threads)
        assert np.array_equal(encode("w", kind, parts), alone)


def arguments(**changes: Any) -> dict[str, Any]:
    shapes = {"d": (2, 1), "m": (2, 1), "sub_scales": (2, 8), "sub_minimums": (2, 8)}
    given = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    unused = dict.fromkeys(("importance", "known_scale", "known_minimum", "codes"))
    weight = np.zeros((2, 256), np.float32)
    kind = ggml_search._native_type(Q4_K)
    return {"type": kind, "weight": weight} | given | unused | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": np.zeros((2, 250), np.float32)}, "whole blocks"),
        ({"importance": np.zeros(255, np.float32)}, "importance must be"),
        ({"known_scale": np.zeros((2, 8), np.float32)}, "known scales have minimums"),
        ({"d": np.zeros((2, 2), np.float32)}, "d must be"),
        ({"m": None}, "m belongs to types with a minimum"),
        ({"sub_scales": np.zeros((2, 7), np.float32)}, "sub_scales must be"),
        ({"sub_minimums": None}, "sub_minimums belong"),
        ({"codes": np.zeros((1, 256), np.int8)}, "codes must be"),
        ({"isa": "mmx"}, "no instruction set named mmx"),
    ],
)
def test_shapes_that_do_not_agree_are_refused(changes: dict[str, Any], message: str) -> None:
    _blocks.search(**arguments())
    with pytest.raises(ValueError, match=message):
        _blocks.search(**arguments(**changes))


def test_a_type_that_makes_no_sense_is_refused() -> None:
    fields: dict[str, Any] = {
        "group": 32,
        "per_block": 1,
        "lowest": -8.0,
        "highest": 7.0,
        "minimum": False,
        "levels": [],
        "nested": [],
        "tries": [8.0, 0.0],
        "rounds": 1,
        "nudges": [1.0],
        "ends": [],
        "nest_rounds": 0,
    }
    _blocks.Type(**fields)
    wrong: list[dict[str, Any]] = [{"group": 0}, {"per_block": 17}, {"per_block": 8}, {"tries": []}]
    wrong += [{"lowest": 9.0}, {"levels": [1.0]}, {"nested": [1.0, 2.0]}, {"highest": 1e9}]
    for change in wrong:
        with pytest.raises(ValueError, match=r"must|has"):
            _blocks.Type(**fields | change)


def test_no_rows_are_no_trouble() -> None:
    assert round_blocks("w", Q8_0, np.zeros((0, 64), np.float32)).shape == (0, 64)
