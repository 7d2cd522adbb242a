"""The options of `coldpress serve` that become the engine's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from coldpress.option_groups import option_group
from coldpress.options import PATH, parse_duration
from runtime.engine.options import EngineOptions, QueueOrder

F = TypeVar("F", bound=Callable[..., Any])
_DEFAULTS = EngineOptions()


def _made(
    max_running: int,
    max_waiting: int,
    max_step_tokens: int,
    step_target: float | None,
    prefix_cache: bool,
    no_evict: bool,
    queue_order: QueueOrder,
    prompt_lookup: bool,
    draft_model: Path | None,
    queue_timeout: float | None,
    deadline: float | None,
) -> EngineOptions:
    return EngineOptions(
        max_running=max_running,
        max_waiting=max_waiting,
        max_step_tokens=max_step_tokens,
        target_step_seconds=step_target,
        prefix_cache=prefix_cache,
        reserve_answers=no_evict,
        queue_order=queue_order,
        prompt_lookup=prompt_lookup,
        draft_model=None if draft_model is None else str(draft_model),
        queue_seconds=queue_timeout,
        deadline_seconds=deadline,
    )


_OPTIONS = (
    click.option(
        "--max-running",
        type=click.IntRange(1),
        default=_DEFAULTS.max_running,
        show_default=True,
        help="Requests that share steps; further ones wait.",
    ),
    click.option(
        "--max-waiting",
        type=click.IntRange(1),
        default=_DEFAULTS.max_waiting,
        show_default=True,
        help="Requests that may wait; further ones are told to come back.",
    ),
    click.option(
        "--max-step-tokens",
        type=click.IntRange(1),
        default=_DEFAULTS.max_step_tokens,
        show_default=True,
        help="Tokens of prompts and answers that one step computes at most.",
    ),
    click.option(
        "--step-target",
        metavar="TIME",
        callback=parse_duration,
        default=f"{_DEFAULTS.target_step_seconds}s",
        show_default=True,
        help="How long prompts may keep running answers waiting, step by step.",
    ),
    click.option(
        "--prefix-cache/--no-prefix-cache",
        default=_DEFAULTS.prefix_cache,
        show_default=True,
        help="Keep what is computed for requests that begin alike.",
    ),
    click.option(
        "--no-evict",
        is_flag=True,
        help="Let a request in only when its longest answer fits, so that none is ever preempted.",
    ),
    click.option(
        "--queue-order",
        type=click.Choice(get_args(QueueOrder)),
        default=_DEFAULTS.queue_order,
        show_default=True,
        help="Who is next of those with equal priority: who came first, or who has most computed.",
    ),
    click.option(
        "--prompt-lookup/--no-prompt-lookup",
        default=True,
        show_default=True,
        help="Guess the next tokens from the text so far, while that is faster; text is the same.",
    ),
    click.option(
        "--draft-model",
        type=PATH,
        metavar="ARTIFACT",
        help="A smaller model with the same vocabulary that guesses as well.",
    ),
    click.option(
        "--queue-timeout",
        metavar="TIME",
        callback=parse_duration,
        help="Refuse requests that have waited so long: 30s, 2m.",
    ),
    click.option(
        "--deadline",
        metavar="TIME",
        callback=parse_duration,
        default="10m",
        show_default=True,
        help="End requests that have taken so long.",
    ),
)


def engine_options(function: F) -> F:
    """All options above; the command gets them as one `options`."""
    return option_group("options", _OPTIONS, _made)(function)
