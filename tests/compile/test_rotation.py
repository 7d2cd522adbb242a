"""What rotary embeddings turn by, against complex numbers one by one."""

import cmath

import numpy as np
import pytest

from compile.program import RopeSpec
from compile.rotation import cos_and_sin, frequencies


@pytest.mark.parametrize("factors", [None, (1.0, 2.0, 3.5, 8.0)])
def test_each_pair_turns_by_its_own_angle(factors: tuple[float, ...] | None) -> None:
    spec = RopeSpec(8, 10000.0, factors, attention_factor=1.25)
    cos, sin = cos_and_sin(spec, 5)
    assert cos.shape == sin.shape == (5, 4) and cos.dtype == sin.dtype == np.float32
    for position in range(5):
        for pair in range(4):
            angle = (
                position * 10000.0 ** (-2 * pair / 8) / (1.0 if factors is None else factors[pair])
            )
            turned = 1.25 * cmath.exp(1j * angle)
            assert abs(complex(cos[position, pair], sin[position, pair]) - turned) < 2.0**-23
    assert frequencies(spec)[0] == 1.0
