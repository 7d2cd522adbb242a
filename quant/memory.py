"""How much memory quantizing takes, and how many samples go through a layer at once.

The answer depends on the model and the recipe alone, never on what the machine has free: batches
change the order of sums, and the same input must give the same bytes everywhere.
"""

import math
from typing import TYPE_CHECKING

from quant.recipe import CalibrationSpec, Recipe

if TYPE_CHECKING:
    from quant.skeleton import Skeleton

_WIDE_TENSORS = 3
_HIDDEN_TENSORS = 8
_HESSIAN_COPIES = 5
_WEIGHT_COPIES = 8
_LAYER_COPIES = 4


def samples_per_batch(skeleton: "Skeleton", calibration: CalibrationSpec) -> int:
    """Samples whose activations inside one layer fit `memory_mib`; at least one."""
    room = calibration.memory_mib << 20
    return max(1, room // (_bytes_per_token(skeleton) * calibration.tokens))


def peak_bytes(skeleton: "Skeleton", recipe: Recipe) -> int:
    """Estimate: what stays, one layer, its widest linear being rounded, and activations."""
    item = skeleton.compute_dtype.itemsize
    sizes = {name: math.prod(shape) for name, shape in skeleton.expected_tensors().items()}
    inside = f"{skeleton.layers_name}."
    outer = sum(size for name, size in sizes.items() if not name.startswith(inside))
    layer = sum(size for name, size in sizes.items() if name.startswith(inside))
    layer //= len(skeleton.layers)
    linears = skeleton.linears().values()
    widest = max(linear.in_features for linear in linears)
    largest = max(linear.in_features * linear.out_features for linear in linears)
    rounding = _HESSIAN_COPIES * 8 * widest**2 + _WEIGHT_COPIES * 4 * largest
    if not recipe.needs_calibration:
        return item * (outer + layer) + _WEIGHT_COPIES * 4 * largest
    calibration = recipe.calibration
    tokens = calibration.samples * calibration.tokens
    batch = min(samples_per_batch(skeleton, calibration), calibration.samples)
    copies = 3 if skeleton.routers() else 2  # experts are rounded by all tokens at their door
    carried = copies * tokens * skeleton.hidden_size * item
    passing = batch * calibration.tokens * _bytes_per_token(skeleton)
    transforms = _transform_bytes(skeleton, recipe, layer)
    return item * (outer + layer) + rounding + carried + passing + transforms


def _transform_bytes(skeleton: "Skeleton", recipe: Recipe, layer: int) -> int:
    """What awq and smoothquant add: a layer of `layer` numbers in float32, as it is, as folded, and
    as tried, and the activations of the tokens that their searches look at."""
    tokens = max((t.tokens for t in (recipe.awq, recipe.smoothquant) if t is not None), default=0)
    if tokens == 0:
        return 0
    return _LAYER_COPIES * 4 * layer + tokens * 2 * _bytes_per_token(skeleton)


def _bytes_per_token(skeleton: "Skeleton") -> int:
    """What one token needs inside a layer: some tensors as wide as the widest linear, some as the
    hidden state, and the hidden state again in float32 where norms work."""
    item = skeleton.compute_dtype.itemsize
    wide = max(max(m.in_features, m.out_features) for m in skeleton.linears().values())
    hidden = skeleton.hidden_size
    return item * (_WIDE_TENSORS * wide + _HIDDEN_TENSORS * hidden) + 8 * hidden
