"""Rounds the linears that share an input, with the algorithm that each was given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from quant.format.errors import CheckFailedError
from quant.format.scheme import PerBlock
from quant.rounding_algorithms.correction import corrected_weight
from quant.rounding_algorithms.factor import Factor, NotPositiveDefiniteError, factor
from quant.rounding_algorithms.gptq import GptqOptions, gptq
from quant.rounding_algorithms.inputs import input_scale, stores_input_scale
from quant.rounding_algorithms.qronos import FirstColumn
from quant.rounding_algorithms.result import AS_ASKED, SHARED, Rounded
from quant.rounding_algorithms.rtn import round_to_nearest
from quant.tasks import FUSED, LinearTask, RoundingSettings
from quant.workers import Workers


@dataclass(frozen=True)
class StageMoments:
    """Of the input x of a stage, over `tokens` tokens; y is x in the model that is not quantized.

    hessian, cross: float32 [in, in], means of x x^T and (y - x) x^T, the latter or None.
    absmax: the largest magnitude of x. drift: float32 [out, in], mean of (s - r) x^T, where r is
    the residual stream that the linear's output is added to, and s the same where y is; or None.
    """

    hessian: torch.Tensor
    cross: torch.Tensor | None
    tokens: int
    absmax: float
    drift: torch.Tensor | None = None
    shared: bool = False


def round_stage(
    tasks: Sequence[LinearTask],
    weights: Mapping[str, torch.Tensor],
    moments: StageMoments,
    settings: RoundingSettings,
    workers: Workers,
) -> dict[str, Rounded]:
    """Rounded weights by module name. `weights`: float32 [out, in] of each task's module.

    All tasks share the input that `moments` tells of, so the Hessian is factored once, and rows of
    equal scheme go through GPTQ in one stack: rows do not influence each other.
    Raises CheckFailedError when a module ends otherwise than asked and the settings forbid it.
    """
    results: dict[str, Rounded] = {}
    for (algorithm, _), same in groupby(tasks, key=lambda t: (t.algorithm, t.scheme)):
        for members in _stacks(list(same), weights):
            if algorithm == "rtn":
                results |= _nearest(members, weights, moments.hessian, settings, AS_ASKED)
            else:
                results |= _gptq_or_fallback(members, weights, moments, settings, workers)
    complete = {module: _completed(result, moments) for module, result in results.items()}
    return _checked(complete, settings)


def _completed(result: Rounded, moments: StageMoments) -> Rounded:
    tensor = result.tensor
    if stores_input_scale(tensor.scheme):
        scale = input_scale(tensor.scheme, moments.absmax)
        tensor = replace(tensor, input_scale=scale)
    state = result.state
    if moments.shared:
        lent = f"{SHARED}: {moments.tokens} tokens of its own"
        state = lent if state == AS_ASKED else f"{state}; {lent}"
    return replace(result, tensor=tensor, tokens=moments.tokens, state=state)


def round_alone(
    tasks: Sequence[LinearTask], weights: Mapping[str, torch.Tensor], settings: RoundingSettings
) -> dict[str, Rounded]:
    """Linears that no calibration token went through: nearest rounding, under its true name."""
    results: dict[str, Rounded] = {}
    stacks = (stack for members in _fused_sets(tasks) for stack in _stacks(members, weights))
    for members in stacks:
        state = AS_ASKED
        if members[0].algorithm != "rtn":
            state = "fallback rtn: no calibration token reached it"
        results |= _nearest(members, weights, None, settings, state)
    return _checked(results, settings)


def _stacks(tasks: list[LinearTask], weights: Mapping[str, torch.Tensor]) -> list[list[LinearTask]]:
    """All in one; one by one where a block of the stack would reach from one into the next."""
    grain = tasks[0].scheme.granularity
    if isinstance(grain, PerBlock) and any(len(weights[t.module]) % grain.rows for t in tasks):
        return [[task] for task in tasks]
    return [tasks]


def _fused_sets(tasks: Sequence[LinearTask]) -> list[list[LinearTask]]:
    sets: dict[object, list[LinearTask]] = {}
    for task in tasks:
        parent, _, name = task.module.rpartition(".")
        fused = next((names for names in FUSED if name in names), name)
        sets.setdefault((parent, fused, task.scheme, task.algorithm), []).append(task)
    return list(sets.values())


def _gptq_or_fallback(
    tasks: Sequence[LinearTask],
    weights: Mapping[str, torch.Tensor],
    moments: StageMoments,
    settings: RoundingSettings,
    workers: Workers,
) -> dict[str, Rounded]:
    try:
        factored = factor(moments.hessian, settings.damping, settings.by_activation, workers)
    except NotPositiveDefiniteError as error:
        state = f"fallback rtn: {error}"
        return _nearest(tasks, weights, moments.hessian, settings, state)
    options = GptqOptions(
        settings.damping,
        settings.by_activation,
        settings.scales,
        settings.polish,
        settings.lowest_zero,
    )
    stack = [weights[task.module] for task in tasks]
    targets = _targets(stack, moments, factored, settings) if tasks[0].corrected else stack
    starts = None
    if tasks[0].algorithm == "qronos":
        starts = _starts(stack, targets, moments, factored, settings)
    scheme, dtype, hessian = tasks[0].scheme, settings.scale_dtype, moments.hessian
    rounded = gptq(targets, hessian, factored, scheme, dtype, options, workers, stack, starts)
    return {task.module: result for task, result in zip(tasks, rounded, strict=True)}


def _targets(
    stack: Sequence[torch.Tensor],
    moments: StageMoments,
    factored: Factor,
    settings: RoundingSettings,
) -> list[torch.Tensor]:
    assert moments.cross is not None
    share = settings.correction_share
    return [
        corrected_weight(weight, moments.cross, moments.drift, factored, share) for weight in stack
    ]


def _starts(
    stack: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    moments: StageMoments,
    factored: Factor,
    settings: RoundingSettings,
) -> list[torch.Tensor]:
    assert moments.cross is not None
    first = FirstColumn(moments.hessian, moments.cross, factored, settings.correction_share)
    return [
        first.start(weight, target, moments.drift)
        for weight, target in zip(stack, targets, strict=True)
    ]


def _nearest(
    tasks: Sequence[LinearTask],
    weights: Mapping[str, torch.Tensor],
    hessian: torch.Tensor | None,
    settings: RoundingSettings,
    state: str,
) -> dict[str, Rounded]:
    rounded = round_to_nearest(
        [weights[task.module] for task in tasks],
        tasks[0].scheme,
        settings.scale_dtype,
        scales=settings.scales,
        lowest_zero=settings.lowest_zero,
        hessian=hessian,
        state=state,
    )
    return {task.module: result for task, result in zip(tasks, rounded, strict=True)}


def _checked(results: dict[str, Rounded], settings: RoundingSettings) -> dict[str, Rounded]:
    for module, result in results.items():
        _check_state(module, result.state, settings)
    return results


def _check_state(module: str, state: str, settings: RoundingSettings) -> None:
    if state.startswith("damping raised") and "damping_raised" not in settings.allowed:
        raise CheckFailedError(
            f"{module}: {state}; calibrate with more or more varied text, raise 'damping', "
            "or put damping_raised under 'allow' in the recipe"
        )
    if SHARED in state and "shared_statistics" not in settings.allowed:
        raise CheckFailedError(
            f"{module}: {state}; calibrate with more or more varied text, lower "
            "'experts.min_tokens', or put shared_statistics under 'allow' in the recipe"
        )
    if state.startswith("fallback rtn") and "rtn_fallback" not in settings.allowed:
        raise CheckFailedError(
            f"{module}: {state}; calibrate with more or more varied text, "
            "or put rtn_fallback under 'allow' in the recipe"
        )
