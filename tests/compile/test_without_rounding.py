"""The same weights, and no word about inputs."""

import numpy as np
import pytest

from compile.without_rounding import without_input_rounding
from quant.format.scheme import (
    ActivationScheme,
    CodebookScheme,
    IntScheme,
    PerChannel,
    PerTensor,
    QuantizedScheme,
)
from quant.format.tensor import QuantizedTensor
from tests.tiny import tiny_model

INT8 = IntScheme(8, True, PerChannel(), ActivationScheme("int8"))


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_only_what_concerns_inputs_is_gone(family: str) -> None:
    model = tiny_model(family, scheme=INT8)
    plain = without_input_rounding(model)
    assert model.program.rounded_inputs() and not plain.program.rounded_inputs()
    assert plain.path == model.path and plain.weights.names() == model.weights.names()
    for name in model.program.weights():
        ours, theirs = plain.weights.load(name), model.weights.load(name)
        assert plain.weights.shape(name) == model.weights.shape(name)
        if isinstance(ours, QuantizedTensor) and isinstance(theirs, QuantizedTensor):
            assert ours.scheme == plain.weights.scheme(name)
            assert ours.scheme.activation is None and theirs.scheme.activation is not None
            assert np.array_equal(ours.codes, theirs.codes)
            assert np.array_equal(ours.dequantize(), theirs.dequantize())
        else:
            assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_a_stored_scale_of_inputs_goes_too() -> None:
    from compile.without_rounding import _Weights

    static = ActivationScheme("e4m3", PerTensor(), dynamic=False)
    scheme: QuantizedScheme = CodebookScheme("e4m3", PerTensor(), activation=static)

    class One:
        def names(self) -> list[str]:
            return ["w"]

        def shape(self, name: str) -> tuple[int, ...]:
            return (2, 4)

        def scheme(self, name: str) -> QuantizedScheme:
            return scheme

        def load(self, name: str) -> QuantizedTensor:
            codes, scale = np.zeros((2, 4), np.int8), np.ones((1, 1), np.float32)
            return QuantizedTensor(scheme, codes, scale, input_scale=0.5)

    weight = _Weights(One()).load("w")
    assert isinstance(weight, QuantizedTensor)
    assert weight.input_scale is None and weight.scheme.activation is None
