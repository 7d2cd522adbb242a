"""Options that several commands share."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from coldpress.console import Console
from coldpress.loading import Activations, Machine
from coldpress.option_groups import option_group
from runtime.kv_cache import KvCacheChoice

if TYPE_CHECKING:
    from coldpress.baseline_cache import BaselineCache

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

PATH = click.Path(path_type=Path)
"""A path that the rooms check themselves, with better sentences than a bare 'does not exist'."""


def artifact(text: str) -> Path:
    """A path, or where the model of that name in the store lies. What is neither is told later,
    after mistakes in options."""
    from coldpress.store.resolve import path_of

    return path_of(text)


ARTIFACT = artifact
"""The type of arguments that are models."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


def size_bytes(text: str) -> int:
    """Bytes of a number with a decimal unit: 512MB, 2GB. ValueError for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"'{text}' is not a size such as 512MB or 2GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def duration_seconds(text: str) -> float:
    """Seconds of a number with a unit: 90s, 5m, 2h. ValueError for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smh]?)", text.strip())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"'{text}' is not a time such as 90s, 5m or 2h")
    return float(match[1]) * _SECONDS[match[2]]


def parse_size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """See `size_bytes`."""
    return None if value is None else _checked(size_bytes, value)


def parse_duration(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """See `duration_seconds`."""
    return None if value is None else _checked(duration_seconds, value)


def _checked(convert: Callable[[str], T], value: str) -> T:
    try:
        return convert(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


pass_console = click.make_pass_decorator(Console, ensure=True)


def _set_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Console).json = True


def json_option(function: F) -> F:
    """`--json` after the command's name too, where most people type it."""
    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=_set_json,
        help="Print one JSON object on stdout.",
    )(function)


def gate_option(function: F) -> F:
    """`--gate 'kld<=0.05'`, any number of times."""
    return click.option(
        "--gate",
        "gates",
        multiple=True,
        metavar="METRIC<=LIMIT",
        help="Fail with exit code 1 unless it holds: kld, kld_p99, kld_max, top1, perplexity, "
        "ppl_ratio, bits_per_weight or bytes, then <=, <, >= or >, then a number.",
    )(function)


def junit_option(function: F) -> F:
    """The same verdicts for a CI system."""
    return click.option(
        "--junit",
        type=PATH,
        metavar="FILE",
        help="Write gates, and modules that are not as asked, as JUnit XML, whatever they came to.",
    )(function)


def gate_text_option(function: F) -> F:
    """What gates are judged on where nothing is evaluated otherwise."""
    return click.option(
        "--gate-text",
        type=PATH,
        help="UTF-8 text that gates are judged on, against the input; Python's language "
        "reference by default.",
    )(function)


def machine_options(activations: Activations) -> Callable[[F], F]:
    """`--backend`, `--threads`, `--kv-cache-type`, `--tensor-parallel` and `--activations`, which
    is `activations` unless given; the command gets them as one `machine`."""
    options = (
        _backend_option,
        _threads_option,
        _activations_option(activations),
        kv_cache_type_option,
        _tensor_parallel_option,
    )
    return option_group("machine", options, Machine.of)


_backend_option = click.option(
    "--backend",
    type=click.Choice(["auto", "cpu", "cuda", "torch", "onnx", "tensorrt"]),
    default="auto",
    show_default=True,
    help="Executor: native CPU kernels, Triton kernels on a GPU, the slow reference in torch, ONNX "
    "Runtime or TensorRT; "
    "auto is the one that an artifact is made for, and native kernels for everything else.",
)
_threads_option = click.option(
    "--threads", type=click.IntRange(1), default=None, help="Cores to use; all by default."
)
_tensor_parallel_option = click.option(
    "--tensor-parallel",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="GPUs that share the model, a process for each (backend cuda; processes for torch).",
)
kv_cache_type_option = click.option(
    "--kv-cache-type",
    type=click.Choice(get_args(KvCacheChoice)),
    default="auto",
    show_default=True,
    help="What keys and values are kept in; auto is float32 where inputs are taken as they are, "
    "else bfloat16. int8, with a scale for each head of each token, holds twice the context.",
)


def _activations_option(default: Activations) -> Callable[[F], F]:
    return click.option(
        "--activations",
        type=click.Choice(get_args(Activations)),
        default=default,
        show_default=True,
        help="What integer weights are multiplied by: inputs rounded to int8, which is several "
        "times as fast, or inputs as they are.",
    )


def _cache(no_cache: bool, cache_size: int | None) -> "BaselineCache | None":
    from coldpress.baseline_cache import CACHE_BYTES, BaselineCache

    if no_cache:
        return None
    note = click.get_current_context().ensure_object(Console).note
    return BaselineCache(limit_bytes=CACHE_BYTES if cache_size is None else cache_size, note=note)


_CACHE_OPTIONS = (
    click.option(
        "--no-cache",
        is_flag=True,
        help="Run the baseline even if its predictions are kept, and keep none.",
    ),
    click.option(
        "--cache-size",
        metavar="SIZE",
        callback=parse_size,
        help="Disk for predictions of baselines, all together; 20GB by default.",
    ),
)


def cache_options(function: F) -> F:
    """`--no-cache` and `--cache-size`; the command gets `cache`, which is None without one."""
    return option_group("cache", _CACHE_OPTIONS, _cache)(function)
