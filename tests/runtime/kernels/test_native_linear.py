"""Matrix products against float64, and bit for bit against themselves in other company."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.format.tensor import Weight
from runtime.executors.cpu.weights import Packed, pack
from runtime.kernels.cpu._native import Plan
from tests.runtime.kernels.harness import ISAS, POOLS, Build, Floats, gamma, random_floats, run_rows
from tests.runtime.kernels.weights import (
    CODEBOOKS,
    K_TYPES,
    KINDS,
    as_float32,
    codebook_weight,
    nested_weight,
    quantized,
    weights,
)


def product(packed: Packed, bias: Floats | None = None) -> Build:
    def build(plan: Plan, x: int) -> int:
        rows, columns = packed.matrix.shape
        out = plan.add_buffer(rows, False)
        if packed.matrix.reordered:
            gathered = plan.add_buffer(columns, False)
            plan.add_gather(gathered, x, packed.matrix)
            x = gathered
        plan.add_linear(x, [(out, packed.matrix, bias)])
        return out

    return build


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60)
@given(weight=weights(), tokens=st.integers(1, 15), bias=st.booleans(), seed=st.integers(0, 99))
def test_every_product_is_within_the_error_of_its_sum(
    isa: str, weight: Weight, tokens: int, bias: bool, seed: int
) -> None:
    rows, columns = weight.shape
    x = random_floats((tokens, columns), seed)
    added = random_floats((rows,), seed + 1) if bias else np.zeros(rows, np.float32)
    found = run_rows(x, product(pack(weight, POOLS[1]), added if bias else None), isa)
    exact = as_float32(weight).astype(np.float64)
    expected = x.astype(np.float64) @ exact.T + added
    # One rounding for each product, one for each sum (a fused one rounds once for both).
    size = np.abs(x).astype(np.float64) @ np.abs(exact).T + np.abs(added)
    assert (np.abs(found - expected) <= gamma(columns + 1) * size).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type_name", K_TYPES)
def test_products_with_nested_scales(isa: str, type_name: str) -> None:
    weight, x = nested_weight(130, 512, type_name), random_floats((9, 512), 1)
    found = run_rows(x, product(pack(weight, POOLS[1])), isa)
    exact = weight.dequantize().astype(np.float64)
    size = np.abs(x).astype(np.float64) @ np.abs(exact).T
    assert (np.abs(found - x.astype(np.float64) @ exact.T) <= gamma(513) * size).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [*KINDS, *CODEBOOKS, "float"])
@pytest.mark.parametrize("columns", [64, 200])
def test_a_row_has_the_same_bits_in_any_company(isa: str, kind: str, columns: int) -> None:
    """Every tile height (1 to 6 rows), several row blocks (more than 96), one and two threads."""
    weight: Weight = random_floats((130, columns), 0)
    if kind in CODEBOOKS:
        weight = codebook_weight(130, columns, kind)
    elif kind != "float":
        weight = quantized(130, columns, kind=kind, group_size=24)
    build = product(pack(weight, POOLS[2]))
    x = random_floats((211, columns), 1)
    together = run_rows(x, build, isa, threads=2)
    np.testing.assert_array_equal(together, run_rows(x, build, isa, threads=1))
    for start in (0, 95, 96, 205):
        for tokens in range(1, 7):
            rows = slice(start, start + tokens)
            np.testing.assert_array_equal(together[rows], run_rows(x[rows].copy(), build, isa))


def test_products_of_one_input_can_share_an_op() -> None:
    first, second = (pack(random_floats((n, 40), n), POOLS[1]).matrix for n in (70, 5))
    x = random_floats((9, 40), 1)

    def build(plan: Plan, source: int) -> int:
        a, b = plan.add_buffer(70, False), plan.add_buffer(5, False)
        plan.add_linear(source, [(a, first, None), (b, second, None)])
        return b

    alone = run_rows(x, product(Packed(second)), "auto")
    np.testing.assert_array_equal(run_rows(x, build, "auto", threads=2), alone)


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="sse9"):
        Plan(POOLS[1], "sse9")
