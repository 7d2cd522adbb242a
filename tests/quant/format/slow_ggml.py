"""ggml's way to choose scales with an importance matrix, one group at a time in float64.

After the descriptions of make_qx_quants, make_qkx3_quants and make_qp_quants in ggml-quants.c, in
plain loops, written to be read. Weights are the importance alone.
"""

import numpy as np
import numpy.typing as npt

from quant.format.ggml_kblocks import LAYOUTS, NestedScales
from quant.format.gguf_types import GgmlType

Floats = npt.NDArray[np.float64]


def half(value: float) -> float:
    return float(np.float16(value))


def weighted_error(x: Floats, h: Floats, rounded: Floats) -> float:
    return float((h * (x - rounded) ** 2).sum())


def signed_codes(x: Floats, scale: float, half_levels: int) -> Floats:
    if scale == 0:
        return np.zeros_like(x)
    return np.clip(np.rint(x / scale), -half_levels, half_levels - 1)


def reference_signed(x: Floats, h: Floats, half_levels: int) -> float:
    """19 scales around the one that puts the largest magnitude at the lowest level; the least
    squares scale of the codes that gain most."""
    largest = float(x[np.abs(x).argmax()])
    if largest == 0:
        return 0.0
    best_scale, best_gain = 0.0, -1.0
    for step in range(-9, 10):
        codes = signed_codes(x, -largest / (half_levels + 0.1 * step), half_levels)
        cross, norm = float((h * x * codes).sum()), float((h * codes * codes).sum())
        if norm > 0 and cross * cross / norm > best_gain:
            best_gain, best_scale = cross * cross / norm, cross / norm
    return best_scale


def reference_affine(x: Floats, h: Floats, highest: int) -> tuple[float, float]:
    """(scale, minimum not above 0): 37 ranges, each with its least squares line."""
    low, high = min(0.0, float(x.min())), float(x.max())
    if high <= low:
        return 0.0, low
    best = ((high - low) / highest, low)
    codes = np.clip(np.rint((x - low) / best[0]), 0, highest)
    best_error = weighted_error(x, h, codes * best[0] + best[1])
    for step in range(37):
        scale = (high - low) / (-0.9 + 0.05 * step + highest)
        codes = np.clip(np.rint((x - low) / scale), 0, highest)
        w, c, cc = h.sum(), (h * codes).sum(), (h * codes * codes).sum()
        sx, xc = (h * x).sum(), (h * x * codes).sum()
        determinant = w * cc - c * c
        if determinant <= 0:
            continue
        line = ((w * xc - sx * c) / determinant, (cc * sx - c * xc) / determinant)
        if line[1] > 0:
            line = (xc / cc, 0.0)
        error = weighted_error(x, h, codes * line[0] + line[1])
        if error < best_error:
            best, best_error = (float(line[0]), float(line[1])), error
    return best


def reference_factor(wanted: Floats, weights: Floats, highest: int) -> tuple[float, Floats]:
    """A factor with whole numbers up to `highest` that come close to `wanted`, none negative."""
    most = float(wanted.max())
    if most <= 0:
        return 0.0, np.zeros_like(wanted)
    best, best_error = (0.0, np.zeros_like(wanted)), np.inf
    for step in range(-4, 5):
        factor = most / (highest + 0.1 * step)
        nested = np.clip(np.rint(wanted / factor), 0, highest)
        error = float((weights * (wanted - factor * nested) ** 2).sum())
        if error < best_error:
            norm = float((weights * nested * nested).sum())
            factor = float((weights * wanted * nested).sum()) / norm if norm > 0 else factor
            best, best_error = (factor, nested), error
    return best


def reference_block(
    kind: GgmlType, x: Floats, h: Floats
) -> tuple[npt.NDArray[np.int8], NestedScales]:
    """One block of 256: groups fitted alone, factors fitted to them, codes chosen at last."""
    layout = LAYOUTS[kind]
    groups, weights = x.reshape(-1, layout.group), h.reshape(-1, layout.group)
    if layout.has_minimum:
        return _affine_block(kind, groups, weights)
    half_levels = 1 << (layout.scheme.num_bits - 1)
    pairs = zip(groups, weights, strict=True)
    scales = np.array([reference_signed(g, w, half_levels) for g, w in pairs])
    largest = float(scales[np.abs(scales).argmax()])
    d = half(largest / layout.lowest)
    sub = np.clip(np.rint(scales / d), layout.lowest, layout.highest) if d else 0 * scales
    codes = [signed_codes(g, d * s, half_levels) for g, s in zip(groups, sub, strict=True)]
    nested = NestedScales(np.full((1, 1), d, np.float16), sub.astype(np.int8)[None])
    return np.concatenate(codes).astype(np.int8)[None], nested


def _affine_block(
    kind: GgmlType, groups: Floats, weights: Floats
) -> tuple[npt.NDArray[np.int8], NestedScales]:
    layout, top = LAYOUTS[kind], (1 << LAYOUTS[kind].scheme.num_bits) - 1
    lines = [reference_affine(g, w, top) for g, w in zip(groups, weights, strict=True)]
    scales, depths = np.array([s for s, _ in lines]), np.array([-m for _, m in lines])
    d, sub = reference_factor(scales, weights.sum(axis=1), layout.highest)
    m, least = reference_factor(depths, weights.sum(axis=1), layout.highest)
    d, m = half(d), half(m)
    codes = []
    for group, s, depth in zip(groups, sub, least, strict=True):
        scale = d * s
        steps = (group + m * depth) / scale if scale else 0 * group
        codes.append(np.clip(np.rint(steps), 0, top))
    nested = NestedScales(
        np.full((1, 1), d, np.float16),
        sub.astype(np.int8)[None],
        np.full((1, 1), m, np.float16),
        least.astype(np.uint8)[None],
    )
    return np.concatenate(codes).astype(np.int8)[None], nested
