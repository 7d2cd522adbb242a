"""Feedback may not lose more than rounding to nearest does, for any kind of scheme."""

import numpy as np
import pytest
import torch

from quant.format.scheme import IntScheme, PerGroup, QuantizedScheme
from quant.rounding_algorithms.factor import factor
from quant.rounding_algorithms.gptq import GptqOptions, gptq
from quant.rounding_algorithms.result import quadratic_form
from quant.rounding_algorithms.rtn import round_to_nearest
from tests.quant.format.random_weights import SCHEMES

KINDS: dict[str, QuantizedScheme] = {
    "int2": IntScheme(2, True, PerGroup(32)),
    "int4": IntScheme(4, True, PerGroup(32)),
    "int4-asym": IntScheme(4, False, PerGroup(32)),
    "fp8": SCHEMES["fp8-weights"],
    "nvfp4": SCHEMES["nvfp4-weights"],
    "mxfp4": SCHEMES["mxfp4-weights"],
}


@pytest.mark.parametrize("name", KINDS)
def test_no_row_loses_more_than_to_nearest(name: str) -> None:
    """Inputs that hardly correlate: feedback gains little, and by itself loses in many of the rows.

    Both losses are sums of 64 x 64 products in float32, taken in another order: 64 roundings along
    each of two axes.
    """
    random = np.random.default_rng(0)
    inputs = random.standard_normal((2048, 64))
    hessian = torch.from_numpy(inputs.T @ inputs / len(inputs)).float()
    weight = torch.from_numpy(random.standard_normal((512, 64)) / 8).float()
    scheme, options = KINDS[name], GptqOptions(scales="range", polish=0)
    factored = factor(hessian, options.damping, options.by_activation)
    (ours,) = gptq([weight], hessian, factored, scheme, "float32", options)
    (nearest,) = round_to_nearest([weight], scheme, "float32", scales="range", hessian=hessian)
    kept, plain = (quadratic_form(weight - r.dequantized, hessian) for r in (ours, nearest))
    assert bool((kept <= plain * (1 + 128 * torch.finfo(torch.float32).eps)).all())
    assert bool((kept < plain).any()), "feedback does something"
