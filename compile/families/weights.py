"""A Program and a source of weights must agree on every name and shape."""

from collections.abc import Iterable

from compile.program import Program
from quant.format.errors import UnsupportedModelError
from quant.format.scheme import QuantizedScheme
from quant.format.tensor import WeightSource

HARMLESS_SUFFIXES = ("rotary_emb.inv_freq",)
"""Buffers that old checkpoints saved, and that every reader computes from the config instead."""


def check_weights(program: Program, source: WeightSource) -> None:
    """Every tensor of the source is used, every used one is there, in its shape.

    Raises UnsupportedModelError that lists what is missing, unused and misshapen.
    """
    wanted = program.weights()
    present = {name for name in source.names() if not name.endswith(HARMLESS_SUFFIXES)}
    misshapen = [
        f"{name} is {list(source.shape(name))} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in present and tuple(source.shape(name)) != shape
    ]
    matrices = {name for name, shape in wanted.items() if len(shape) == 2}
    quantized_vectors = [
        name
        for name in wanted
        if name in present - matrices and isinstance(source.scheme(name), QuantizedScheme)
    ]
    problems = [
        _listed("missing", (name for name in wanted if name not in present)),
        _listed("not used by this model", sorted(present - wanted.keys())),
        _listed("of the wrong shape", misshapen),
        _listed("quantized although no matrix", quantized_vectors),
    ]
    if any(problems):
        raise UnsupportedModelError(
            f"the weights do not fit a {program.family} model of this config: "
            + "; ".join(problem for problem in problems if problem)
        )


def _listed(what: str, names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what}: {', '.join(names[:most])}{more}"
