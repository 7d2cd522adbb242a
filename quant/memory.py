"""How much memory quantizing takes, and how many samples go through a layer at once.

The answer depends on the model and the recipe alone, never on what the machine has free: batches
change the order of sums, and the same input must give the same bytes everywhere.
"""

import math
from typing import TYPE_CHECKING

from quant.recipe import CalibrationSpec, Recipe
from quant.tasks import CORRECTING

if TYPE_CHECKING:
    from quant.skeleton import Skeleton

_WIDE_TENSORS = 3
_HIDDEN_TENSORS = 8
_HESSIAN_COPIES = 5
_WEIGHT_COPIES = 8
_LAYER_COPIES = 4
_RESULT_BYTES = 2
"""Of each number of a layer: a code of 8 bits and its share of the scales, now and of the layer
before, which is being written."""


def samples_per_batch(skeleton: "Skeleton", calibration: CalibrationSpec) -> int:
    """Samples whose activations inside one layer fit `memory_mib`; at least one."""
    room = calibration.memory_mib << 20
    return max(1, room // (_bytes_per_token(skeleton) * calibration.tokens))


def carried_bytes(skeleton: "Skeleton", recipe: Recipe) -> int:
    """Hidden states of all calibration tokens: twice where those of the float model go along."""
    spec = recipe.calibration
    algorithms = {recipe.algorithm, *(override.algorithm for override in recipe.overrides)}
    copies = 2 if algorithms & CORRECTING else 1
    item = skeleton.compute_dtype.itemsize
    return copies * spec.samples * spec.tokens * skeleton.hidden_size * item


def spooled_bytes(skeleton: "Skeleton", recipe: Recipe) -> int:
    """What of these lies in files: all when they are more than `carried_mib`, else nothing."""
    carried = carried_bytes(skeleton, recipe)
    limit = recipe.calibration.carried_mib << 20
    return carried if recipe.needs_calibration and carried > limit else 0


def peak_bytes(skeleton: "Skeleton", recipe: Recipe) -> int:
    """Estimate: what stays, one layer, its largest linears being rounded, and activations."""
    item = skeleton.compute_dtype.itemsize
    sizes = {name: math.prod(shape) for name, shape in skeleton.expected_tensors().items()}
    inside = f"{skeleton.layers_name}."
    outer = sum(size for name, size in sizes.items() if not name.startswith(inside))
    layer = sum(size for name, size in sizes.items() if name.startswith(inside))
    layer //= len(skeleton.layers)
    linears = skeleton.linears().values()
    widest = max(linear.in_features for linear in linears)
    results = _RESULT_BYTES * layer
    rounding = _WEIGHT_COPIES * 4 * _largest_stack(skeleton)
    if not recipe.needs_calibration:
        return item * outer + 4 * layer + results + rounding
    rounding += _HESSIAN_COPIES * 8 * widest**2 + results
    calibration = recipe.calibration
    tokens = calibration.samples * calibration.tokens
    batch = min(samples_per_batch(skeleton, calibration), calibration.samples)
    carried = 0 if spooled_bytes(skeleton, recipe) else carried_bytes(skeleton, recipe)
    if skeleton.routers():  # experts are rounded by all tokens at their door
        carried += tokens * skeleton.hidden_size * item
    passing = batch * calibration.tokens * _bytes_per_token(skeleton)
    transforms = _transform_bytes(skeleton, recipe, layer)
    return item * (outer + layer) + rounding + carried + passing + transforms


def _largest_stack(skeleton: "Skeleton") -> int:
    """Numbers of the linears that are rounded at once: those of one parent that read as much."""
    stacks: dict[tuple[str, int], int] = {}
    for name, linear in skeleton.linears().items():
        key = (name.rpartition(".")[0], linear.in_features)
        stacks[key] = stacks.get(key, 0) + linear.in_features * linear.out_features
    return max(stacks.values())


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
