"""Rounds the linears that share an input, with the algorithm that each was given."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch

from quant.format.errors import CheckFailedError
from quant.rounding_algorithms.factor import NotPositiveDefiniteError, factor
from quant.rounding_algorithms.gptq import GptqOptions, gptq
from quant.rounding_algorithms.result import AS_ASKED, Rounded
from quant.rounding_algorithms.rtn import round_to_nearest
from quant.tasks import LinearTask, RoundingSettings


def round_stage(
    tasks: Sequence[LinearTask],
    weights: Mapping[str, torch.Tensor],
    hessian: torch.Tensor,
    settings: RoundingSettings,
) -> dict[str, Rounded]:
    """Rounded weights by module name. `weights`: float32 [out, in] of each task's module.

    All tasks share the input whose second moments `hessian` [in, in] holds, so it is factored once,
    and rows of equal scheme go through GPTQ in one stack: rows do not influence each other.
    Raises CheckFailedError when a module ends otherwise than asked and the settings forbid it.
    """
    results: dict[str, Rounded] = {}
    for (algorithm, _), same in groupby(tasks, key=lambda t: (t.algorithm, t.scheme)):
        members = list(same)
        if algorithm == "gptq":
            results |= _gptq_or_fallback(members, weights, hessian, settings)
        else:
            results |= _nearest(members, weights, hessian, settings, AS_ASKED)
    for module, result in results.items():
        _check_state(module, result.state, settings)
    return results


def unreached(task: LinearTask, weight: torch.Tensor, settings: RoundingSettings) -> Rounded:
    """A module that no calibration token went through: nearest rounding, under its true name."""
    state = AS_ASKED
    if task.algorithm != "rtn":
        state = "fallback rtn: no calibration token reached it"
    _check_state(task.module, state, settings)
    (rounded,) = round_to_nearest(
        [weight],
        task.scheme,
        settings.scale_dtype,
        scales=settings.scales,
        lowest_zero=settings.lowest_zero,
        state=state,
    )
    return rounded


def _gptq_or_fallback(
    tasks: Sequence[LinearTask],
    weights: Mapping[str, torch.Tensor],
    hessian: torch.Tensor,
    settings: RoundingSettings,
) -> dict[str, Rounded]:
    try:
        factored = factor(hessian, settings.damping, settings.by_activation)
    except NotPositiveDefiniteError as error:
        return _nearest(tasks, weights, hessian, settings, f"fallback rtn: {error}")
    options = GptqOptions(
        settings.damping,
        settings.by_activation,
        settings.scales,
        settings.polish,
        settings.lowest_zero,
    )
    stack = [weights[task.module] for task in tasks]
    scheme, dtype = tasks[0].scheme, settings.scale_dtype
    rounded = gptq(stack, hessian, factored, scheme, dtype, options)
    return {task.module: result for task, result in zip(tasks, rounded, strict=True)}


def _nearest(
    tasks: Sequence[LinearTask],
    weights: Mapping[str, torch.Tensor],
    hessian: torch.Tensor,
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


def _check_state(module: str, state: str, settings: RoundingSettings) -> None:
    if state.startswith("damping raised") and "damping_raised" not in settings.allowed:
        raise CheckFailedError(
            f"{module}: {state}; calibrate with more or more varied text, raise 'damping', "
            "or put damping_raised under 'allow' in the recipe"
        )
    if state.startswith("fallback rtn") and "rtn_fallback" not in settings.allowed:
        raise CheckFailedError(
            f"{module}: {state}; calibrate with more or more varied text, "
            "or put rtn_fallback under 'allow' in the recipe"
        )
