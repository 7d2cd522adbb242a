"""A model whose linears take their inputs as they come, whatever its checkpoint says."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from compile.families import build_program
from compile.model import Model
from quant.format.scheme import FloatScheme, Scheme
from quant.format.tensor import QuantizedTensor, Weight, WeightSource


@dataclass(frozen=True)
class _Weights:
    """A WeightSource: `source` with no word about inputs."""

    source: WeightSource

    def names(self) -> Collection[str]:
        return self.source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(name)

    def scheme(self, name: str) -> Scheme:
        scheme = self.source.scheme(name)
        return scheme if isinstance(scheme, FloatScheme) else replace(scheme, activation=None)

    def load(self, name: str) -> Weight:
        weight = self.source.load(name)
        if not isinstance(weight, QuantizedTensor):
            return weight
        return replace(weight, scheme=replace(weight.scheme, activation=None), input_scale=None)


def without_input_rounding(model: Model) -> Model:
    """`model` with the same weights, none of whose inputs are rounded: what a container holds that
    has no word for it."""
    weights = _Weights(model.weights)
    names = set(weights.names())
    program = build_program(model.config, weights.scheme, names.__contains__)
    return replace(model, program=program, weights=weights)
