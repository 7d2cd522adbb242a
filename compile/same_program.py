"""Do two Programs compute the same, whatever their weights are stored in?"""

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np

from compile.model import Model
from compile.program import Attend, Expert, Linear, Op, Program, RopeSpec
from quant.format.tensor import QuantizedTensor, Weight

RELATIVE_TOLERANCE = 1e-6
"""Containers keep real numbers in float32, whose relative rounding is below 1.2e-7."""
IGNORED = {"scheme", "weight", "scaling"}


def program_differences(reference: Program, stored: Program, most: int = 8) -> list[str]:
    """Sentences, at most `most`, on what `stored` computes differently; empty when nothing."""
    if reference.sizes != stored.sizes:
        return [f"the model has the sizes {stored.sizes} instead of {reference.sizes}"]
    if len(reference.ops) != len(stored.ops):
        return [f"the program has {len(stored.ops)} ops instead of {len(reference.ops)}"]
    limit = reference.sizes.max_positions
    sentences = []
    for theirs, ours in zip(reference.ops, stored.ops, strict=True):
        theirs, ours = _without_vain_window(theirs, limit), _without_vain_window(ours, limit)
        if type(theirs) is not type(ours):
            sentences.append(f"op {ours.out} is {type(ours).__name__}, not {type(theirs).__name__}")
            continue
        for name in _compared(theirs):
            a, b = getattr(theirs, name), getattr(ours, name)
            if name == "experts" and not _same(a, b):
                sentences.append(f"op {ours.out} has other experts")
            elif not _same(a, b):
                sentences.append(f"op {ours.out} has {name} {b} instead of {a}")
    return sentences[:most]


def multiplied_weight(model: Model, name: str) -> Weight:
    """The weight `name` as the program multiplies with it: what a norm adds to its own is added,
    as some containers store the sum and some the offset."""
    weight, offset = model.weights.load(name), model.program.norm_offsets().get(name, 0.0)
    if offset == 0:
        return weight
    assert not isinstance(weight, QuantizedTensor), "norms are vectors, and stay floats"
    return weight.astype(np.float32) + np.float32(offset)


def _compared(item: Op | Expert) -> list[str]:
    return [field.name for field in fields(item) if field.name not in IGNORED]


def _without_vain_window(op: Op, max_positions: int) -> Op:
    """A window that is as wide as the longest context hides nothing."""
    if isinstance(op, Attend) and op.window is not None and op.window >= max_positions:
        return replace(op, window=None)
    return op


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, RopeSpec) and isinstance(b, RopeSpec):
        return (
            a.dimension == b.dimension
            and _same(a.theta, b.theta)
            and _same(a.attention_factor, b.attention_factor)
            and _same(_factors(a), _factors(b))
        )
    if isinstance(a, Expert | Linear) and type(a) is type(b):
        return all(_same(getattr(a, name), getattr(b, name)) for name in _compared(a))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _factors(rope: RopeSpec) -> tuple[float, ...]:
    return (1.0,) * (rope.dimension // 2) if rope.factors is None else rope.factors
