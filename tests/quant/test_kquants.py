"""GPTQ inside ggml's blocks: a dense float64 oracle, and what must hold for each type."""

import numpy as np
import pytest
import torch

from quant.format.ggml_kblocks import LAYOUTS as NESTED
from quant.format.gguf_blocks import SCHEMES, decode, encode
from quant.format.gguf_types import IQ4_NL, IQ4_XS, Q3_K, Q4_0, Q4_1, Q4_K, Q8_0, GgmlType
from quant.format.tensor import QuantizedTensor
from quant.rounding_algorithms.factor import Factor, factor
from quant.rounding_algorithms.gptq import GptqOptions, gptq
from quant.rounding_algorithms.grid import Grid, nearest_levels
from quant.rounding_algorithms.kquants import refit_blocks, search_block_grid
from quant.rounding_algorithms.result import Rounded, quadratic_form
from quant.rounding_algorithms.rtn import round_to_nearest

KINDS = [kind for kind, scheme in SCHEMES.items() if scheme.ggml_type is not None]
"""Those that are rounded inside ggml's own blocks; MXFP4 and NVFP4 are formats of their own."""
FEW = [Q4_1, Q3_K, Q4_K, IQ4_XS]
COLUMNS = 512


def problem(seed: int, rows: int = 12) -> tuple[torch.Tensor, torch.Tensor, Factor]:
    """A weight and the second moments of correlated inputs of unequal size."""
    random = np.random.default_rng(seed)
    mixing = np.eye(COLUMNS) + 0.1 * random.standard_normal((COLUMNS, COLUMNS))
    inputs = random.standard_normal((2 * COLUMNS, COLUMNS)) @ mixing
    inputs *= np.exp(0.5 * random.standard_normal(COLUMNS))
    hessian = torch.from_numpy(inputs.T @ inputs / len(inputs)).float()
    weight = torch.from_numpy(0.02 * random.standard_normal((rows, COLUMNS))).float()
    return weight, hessian, factor(hessian, 0.01, True)


def run(
    kind: GgmlType, weight: torch.Tensor, hessian: torch.Tensor, factored: Factor, polish: int
) -> Rounded:
    options = GptqOptions(polish=polish)
    return gptq([weight], hessian, factored, SCHEMES[kind], "bfloat16", options)[0]


def losses(weight: torch.Tensor, hessian: torch.Tensor, rounded: Rounded) -> torch.Tensor:
    """Of what a reader of the blocks gets, not of what the algorithm believes."""
    read = decode_again(rounded.tensor).dequantize()
    return quadratic_form(weight - torch.from_numpy(read), hessian)


def decode_again(tensor: QuantizedTensor) -> QuantizedTensor:
    kind = next(kind for kind in KINDS if kind.name == tensor.scheme.ggml_type)
    again = decode(kind, encode("w", kind, tensor), tensor.shape)
    assert isinstance(again, QuantizedTensor)
    return again


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_feedback_and_polish_only_gain(kind: GgmlType) -> None:
    weight, hessian, factored = problem(0)
    (nearest,) = round_to_nearest([weight], SCHEMES[kind], "bfloat16", hessian=hessian)
    plain = losses(weight, hessian, nearest).sum()
    first = losses(weight, hessian, run(kind, weight, hessian, factored, 0))
    polished = losses(weight, hessian, run(kind, weight, hessian, factored, 2))
    assert first.sum() < plain
    assert (polished <= first * (1 + 1e-4)).all() and polished.sum() < 0.99 * first.sum()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_dequantized_is_what_a_reader_gets(kind: GgmlType) -> None:
    """Exactly for types without a minimum; else up to the rounding of one product."""
    weight, hessian, factored = problem(1, rows=5)
    rounded = run(kind, weight, hessian, factored, 2)
    again = decode_again(rounded.tensor)
    assert np.array_equal(again.codes, rounded.tensor.codes)
    read = torch.from_numpy(again.dequantize())
    slack = 0.0 if again.minimum is None else 2.0**-20 * float(weight.abs().max())
    assert (read - rounded.dequantized).abs().max() <= slack


@pytest.mark.parametrize("kind", FEW, ids=str)
def test_rows_of_a_stack_are_rounded_as_if_alone(kind: GgmlType) -> None:
    """Up to the order in which a matrix product sums, which may move a code at a tie: losses."""
    weight, hessian, factored = problem(2, rows=10)
    together = losses(weight, hessian, run(kind, weight, hessian, factored, 1))
    alone = losses(weight[3:5], hessian, run(kind, weight[3:5], hessian, factored, 1))
    assert torch.allclose(together[3:5], alone, rtol=0.02)


@pytest.mark.parametrize("kind", FEW, ids=str)
def test_the_same_input_gives_the_same_bytes(kind: GgmlType) -> None:
    weight, hessian, factored = problem(3, rows=4)
    first, second = (run(kind, weight, hessian, factored, 1).tensor for _ in range(2))
    assert np.array_equal(encode("w", kind, first), encode("w", kind, second))


@pytest.mark.parametrize("kind", [Q4_0, Q4_1, Q8_0], ids=str)
def test_refitted_factors_solve_the_normal_equations(kind: GgmlType) -> None:
    """Against least squares in float64, row by row, over the columns of a Cholesky factor."""
    weight, hessian, factored = problem(4, rows=3)
    scheme = SCHEMES[kind]
    grid = search_block_grid(weight, factored.importance(), scheme)
    levels = nearest_levels(weight, grid.columns(scheme, COLUMNS), scheme)
    refitted = refit_blocks(weight, levels, grid, hessian, scheme)
    root = np.linalg.cholesky(hessian.double().numpy())
    for row in range(len(weight)):
        steps = levels[row].double().numpy()
        groups = np.arange(COLUMNS) // 32
        design = np.where(groups[:, None] == np.arange(COLUMNS // 32), steps[:, None], 0.0)
        if kind == Q4_1:
            ones = (groups[:, None] == np.arange(COLUMNS // 32)).astype(float)
            design = np.concatenate([design, ones], axis=1)
        target = weight[row].double().numpy() @ root
        best, *_ = np.linalg.lstsq(root.T @ design, target, rcond=None)
        found = [refitted.parts["d"][row]]
        if kind == Q4_1:
            found.append(refitted.parts["m"][row])
        expected = torch.from_numpy(best).float()
        # Half a step of float16, and the ridge of the normal equations.
        assert torch.allclose(torch.cat(found), expected, rtol=2.0**-10, atol=1e-6)


@pytest.mark.parametrize("kind", list(NESTED), ids=str)
def test_a_refit_leaves_scales_that_blocks_can_hold(kind: GgmlType) -> None:
    weight, hessian, factored = problem(5, rows=6)
    scheme, layout = SCHEMES[kind], NESTED[kind]
    grid = search_block_grid(weight, factored.importance(), scheme)
    levels = nearest_levels(weight, grid.columns(scheme, COLUMNS), scheme)
    refitted = refit_blocks(weight, levels, grid, hessian, scheme)
    for name, part in refitted.parts.items():
        if name in ("d", "m"):
            assert torch.equal(part, part.half().float()) and (part != 0).all(), name
        else:
            assert torch.equal(part, part.round()), name
            assert part.min() >= layout.lowest and part.max() <= layout.highest, name
    assert (refitted.parts["sub_scales"] != 0).all()
    before, after = (loss_on(weight, levels, g, hessian, kind) for g in (grid, refitted))
    assert after.sum() < before.sum()
    unchanged = search_block_grid(weight, factored.importance(), scheme)
    assert all(torch.equal(grid.parts[n], unchanged.parts[n]) for n in grid.parts), "not in place"


def loss_on(
    weight: torch.Tensor, levels: torch.Tensor, grid: Grid, hessian: torch.Tensor, kind: GgmlType
) -> torch.Tensor:
    wide = grid.columns(SCHEMES[kind], COLUMNS)
    return quadratic_form(weight - (levels - wide.zero) * wide.scale, hessian)


@pytest.mark.parametrize("kind", [Q4_K, IQ4_NL], ids=str)
def test_feedback_follows_the_plain_recurrence(kind: GgmlType) -> None:
    """Column by column in float64: divide the error by the factor's diagonal, spread it on."""
    weight, hessian, factored = problem(6, rows=2)
    scheme = SCHEMES[kind]
    grid = search_block_grid(weight, factored.importance(), scheme)
    wide = grid.columns(scheme, COLUMNS)
    left = weight.double().numpy().copy()
    values = np.empty_like(left)
    upper, order = factored.upper.double().numpy(), factored.order.numpy()
    for step, column in enumerate(order):
        here = Grid(wide.scale[:, column : column + 1], wide.zero[:, column : column + 1])
        wanted = torch.from_numpy(left[:, column : column + 1]).float()
        level = nearest_levels(wanted, here, scheme)
        values[:, column] = ((level - here.zero) * here.scale)[:, 0].double().numpy()
        error = (left[:, column] - values[:, column]) / upper[step, step]
        left[:, order[step + 1 :]] -= np.outer(error, upper[step, step + 1 :])
    expected = quadratic_form(weight - torch.from_numpy(values).float(), hessian)
    (nearest,) = round_to_nearest([weight], scheme, "bfloat16", hessian=hessian)
    floor = losses(weight, hessian, nearest)
    found = losses(weight, hessian, run(kind, weight, hessian, factored, 0))
    assert torch.allclose(found, torch.minimum(expected, floor), rtol=0.02)
