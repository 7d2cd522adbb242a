"""What llama.cpp takes for granted of an architecture: a Program that differs cannot be written."""

import math

from compile.gguf_names import Architecture
from compile.program import Attend, Embed, GatedAct, Logits, Moe, Program, Rope, RopeSpec
from quant.format.errors import UnsupportedModelError

TOLERANCE = 1e-6
"""Keys are float32, whose relative rounding is below 1.2e-7."""


def check_program(program: Program, architecture: Architecture) -> None:
    """Raises UnsupportedModelError with what llama.cpp would compute instead."""
    problem = (
        _activation_problem(program, architecture)
        or _scale_problem(program, architecture)
        or _softcap_problem(program, architecture)
        or _experts_problem(program, architecture)
    )
    if problem is not None:
        raise UnsupportedModelError(
            f"a GGUF file of this {program.family} model would be run differently: "
            f"llama.cpp {problem}"
        )


def embedding_root(program: Program) -> float:
    """What llama.cpp multiplies the token table by, where it does."""
    return math.sqrt(program.sizes.hidden_size)


def embedding_scale(program: Program) -> float:
    return next(op.scale for op in program.ops if isinstance(op, Embed))


def layer_ropes(program: Program) -> list[tuple[RopeSpec, int | None]]:
    """Rotation and window of each layer."""
    layers, rope = [], None
    for op in program.ops:
        if isinstance(op, Rope):
            rope = op.rope
        elif isinstance(op, Attend):
            assert rope is not None, "queries and keys are rotated before they meet"
            layers.append((rope, op.window))
    return layers


def ropes(program: Program, architecture: Architecture) -> tuple[RopeSpec, RopeSpec]:
    """(of layers that see everything, of layers with a window). Raises UnsupportedModelError for
    more kinds of rotation than the architecture has."""
    layers = layer_ropes(program)
    every = {rope for rope, _ in layers}
    whole = {rope for rope, window in layers if window is None}
    local = {rope for rope, window in layers if window is not None}
    one = every if not architecture.local_rope else None
    if any(len(specs) > 1 for specs in (whole, local, one or ())):
        raise UnsupportedModelError("GGUF holds one kind of rotary embedding for all layers")
    if architecture.local_rope and any(spec.factors is not None for spec in local):
        raise UnsupportedModelError("llama.cpp does not scale the rotation of layers with a window")
    return next(iter(whole or local)), next(iter(local or whole))


def _activation_problem(program: Program, architecture: Architecture) -> str | None:
    found = {op.activation for op in program.ops if isinstance(op, GatedAct | Moe)}
    if found <= {architecture.activation}:
        return None
    return f"computes {architecture.name} models with {architecture.activation} only"


def _experts_problem(program: Program, architecture: Architecture) -> str | None:
    mixtures = [op for op in program.ops if isinstance(op, Moe)]
    if architecture.experts is None:
        return None
    if len(mixtures) != program.sizes.layers:
        return f"runs every layer of {architecture.name} models with experts as a mixture of them"
    if not all(op.normalized for op in mixtures):
        return "always divides the shares of the chosen experts by their sum ('norm_topk_prob')"
    return None


def _scale_problem(program: Program, architecture: Architecture) -> str | None:
    sizes = program.sizes
    scalar = architecture.query_scalar(sizes.layers, sizes.hidden_size, sizes.heads, sizes.head_dim)
    found = {op.scale for op in program.ops if isinstance(op, Attend)}
    if all(math.isclose(scale, scalar**-0.5, rel_tol=TOLERANCE) for scale in found):
        return None
    return (
        f"scales the attention of {architecture.name} models of {sizes.layers} layers by "
        f"1 / sqrt({scalar}), not by {found.pop():.6g}"
    )


def _softcap_problem(program: Program, architecture: Architecture) -> str | None:
    scores = {op.softcap for op in program.ops if isinstance(op, Attend)}
    logits = {op.softcap for op in program.ops if isinstance(op, Logits)}
    if architecture.softcaps == "both":
        wrong = None in scores | logits
        return f"always caps the scores and logits of {architecture.name} models" if wrong else None
    if scores != {None} or (architecture.softcaps == "none" and logits != {None}):
        return f"does not cap them so in {architecture.name} models"
    return None
