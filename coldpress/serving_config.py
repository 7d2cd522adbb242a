"""models.yaml: everything that `coldpress serve` can be told of several models.

models:
  small: {path: smollm2.gguf, context: 2048, kv_cache: 256MB, max_running: 4}
  large: {path: mistral-int4/, load: on-demand}
aliases:
  prod: {small: 90, large: 10}
  default: small
shadows:
  - {model: small, copy_to: large, share: 0.05}
idle_unload: 5m
make_room: true
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from coldpress.loading import Activations, Machine
from coldpress.options import duration_seconds, size_bytes
from coldpress.serving import ModelPlan, ServerPlan
from quant.format.errors import InputError
from runtime.engine.options import EngineOptions
from runtime.kv_cache import KvCacheChoice
from runtime.server.registry_names import Alias, Shadow

T = TypeVar("T")
Resolve = Callable[[str], tuple[str, Path]]

MAX_BYTES = 1 << 20
_ENGINE = [field.name for field in fields(EngineOptions)]
_STRICT = ConfigDict(strict=True, extra="forbid")
_Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Targets = Annotated[dict[str, _Weight], Field(min_length=1)]


class _Model(BaseModel):
    """Keys of a model besides those of EngineOptions, which `model_extra` holds."""

    model_config = ConfigDict(strict=True, extra="allow")

    path: str
    load: Literal["at-start", "on-demand"] | None = None
    context: int | None = Field(None, ge=2)
    kv_cache: str | int | None = None
    kv_cache_type: KvCacheChoice | None = None
    backend: str | None = None
    threads: int | None = Field(None, ge=1)
    tensor_parallel: int | None = Field(None, ge=1)
    activations: Activations | None = None


def _path_alone(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _model_alone(value: Any) -> Any:
    return {value: 1.0} if isinstance(value, str) else value


class _Shadow(BaseModel):
    model_config = _STRICT

    model: str
    copy_to: str
    share: float = Field(gt=0, le=1)


class _File(BaseModel):
    model_config = _STRICT

    models: dict[str, Annotated[_Model, BeforeValidator(_path_alone)]] = Field(min_length=1)
    aliases: dict[str, Annotated[_Targets, BeforeValidator(_model_alone)]] = {}
    shadows: list[_Shadow] = []
    idle_unload: str | int | None = None
    make_room: bool = False


def read_config(path: Path, defaults: ModelPlan, resolve: Resolve) -> ServerPlan:
    """The plan that a YAML file describes; what it leaves out of a model is as in `defaults`.

    resolve: the name and path of a model that does not lie beside the file. InputError naming the
    file and the key for anything that is wrong.
    """
    parsed = _told(path, "", _File.model_validate, _parsed(path))
    idle = parsed.idle_unload
    return ServerPlan(
        [_model(path, name, one, defaults, resolve) for name, one in parsed.models.items()],
        [Alias(name, tuple(to.items())) for name, to in parsed.aliases.items()],
        [Shadow(one.model, one.copy_to, one.share) for one in parsed.shadows],
        None if idle is None else _told(path, "idle_unload", duration_seconds, str(idle)),
        parsed.make_room,
    )


def _model(
    file: Path, name: str, table: _Model, defaults: ModelPlan, resolve: Resolve
) -> ModelPlan:
    beside = file.parent / table.path
    size, load = table.kv_cache, table.load
    where = f"models.{name}"
    return replace(
        defaults,
        name=name,
        path=beside if beside.exists() else resolve(table.path)[1],
        machine=_machine(table, defaults.machine),
        context=defaults.context if table.context is None else table.context,
        kv_cache_bytes=defaults.kv_cache_bytes
        if size is None
        else _told(file, f"{where}.kv_cache", size_bytes, str(size)),
        engine=_engine(file, where, table.model_extra or {}, defaults.engine),
        on_demand=defaults.on_demand if load is None else load == "on-demand",
    )


def _machine(table: _Model, defaults: Machine) -> Machine:
    names = ("backend", "threads", "kv_cache_type", "tensor_parallel")
    given = {name: value for name in names if (value := getattr(table, name)) is not None}
    if table.activations is not None:
        given["exact"] = table.activations == "float32"
    return replace(defaults, **given)


def _engine(
    file: Path, where: str, given: Mapping[str, Any], defaults: EngineOptions
) -> EngineOptions:
    hints, chosen = get_type_hints(EngineOptions), {}
    for key, value in given.items():
        if key not in _ENGINE:
            known = ", ".join([*_Model.model_fields, *_ENGINE])
            raise InputError(f"{file}: {where}: the key '{key}' is unknown; known are {known}")
        adapter: TypeAdapter[Any] = TypeAdapter(hints[key])
        chosen[key] = _told(file, f"{where}.{key}", adapter.validate_python, value)
    return _told(file, where, lambda values: replace(defaults, **values), chosen)


def _parsed(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise InputError(f"{path}: is larger than {MAX_BYTES:,} bytes, too large for a config")
        return yaml.safe_load(raw.decode())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error


def _told(file: Path, where: str, convert: Callable[[Any], T], value: Any) -> T:
    """What `convert` makes of a value; its complaint names the file and the key."""
    try:
        return convert(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        keys = [str(key) for key in first["loc"]]
        place = ".".join([where, *keys] if where else keys) or "the file"
        raise InputError(f"{file}: {place}: {first['msg']}") from error
    except ValueError as error:
        raise InputError(f"{file}: {where}: {error}") from error
