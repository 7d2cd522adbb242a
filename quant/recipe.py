"""Recipes: what to quantize and how, as data. Read from YAML, checked before anything else."""

import difflib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quant.format.containers import Format
from quant.format.errors import RecipeError
from quant.kv_cache import KV_CACHE_SCHEMES, KvCache
from quant.tasks import Algorithm, Deviation, ScaleChoice
from quant.transforms.settings import AwqFormula

GroupSize = Literal[16, 32, 64, 128, "channel", "tensor", "block"]
NumberType = Literal["int", "fp8", "nvfp4", "mxfp4", "mxfp8", "ggml"]
Activations = Literal["none", "int8", "int8-static", "fp8", "fp8-static", "same"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SchemeSpec(_Strict):
    """The numbers asked for. A group size may shrink to fit a model: see `quant.resolve`.

    type: int (num_bits, symmetric and group_size say which); fp8 (e4m3; group_size channel, tensor,
    or block for 128x128); nvfp4, mxfp4, mxfp8 (their own groups); ggml (`ggml_type`, such as Q4_K
    or the mix Q4_K_M).
    activations: how inputs are rounded at run time: not at all; int8 or fp8 with a scale per token
    made as they come, or one stored scale (-static); "same": as the weights of nvfp4 and mx types.
    """

    type: NumberType = "int"
    num_bits: Literal[2, 3, 4, 5, 6, 8] = 4
    symmetric: bool = True
    group_size: GroupSize = 64
    activations: Activations = "none"
    ggml_type: str | None = None

    @property
    def stores_input_scale(self) -> bool:
        """Whether rounding inputs takes a number from calibration."""
        same = self.type == "nvfp4" and self.activations == "same"
        return same or self.activations.endswith("-static")


class GptqSpec(_Strict):
    """damping: share of the mean diagonal added to the Hessian before it is factored.

    activation_order: "static" visits columns by falling activation and keeps the plain layout.
    polish: rounds of fitting the scales again under the whole Hessian and moving single codes.
    first_token_share: how much the first token of each sample counts for; see `quant.statistics`.
    correction: for gptaq and qronos, how much of what earlier layers lost a target makes up for.
    """

    damping: float = Field(default=0.01, gt=0.0, le=1.0)
    activation_order: Literal["static", "none"] = "static"
    polish: int = Field(default=2, ge=0, le=32)
    first_token_share: float = Field(default=0.2, ge=0.0, le=0.9)
    correction: float = Field(default=1.0, gt=0.0, le=1.0)


class AwqSpec(_Strict):
    """Channels that carry much are scaled up before rounding; see `quant.transforms.awq`.

    ratios: how many scales are tried at each place, besides none. formula: "plain" looks at the
    inputs alone, "duo" at the weights too and wins nearly always, "both" tries twice as many.
    clip: shrink the range of groups as well, where nearest rounding gains by it. tokens: how many
    the search looks at.
    """

    ratios: int = Field(default=20, ge=1, le=1000)
    formula: AwqFormula = "duo"
    clip: bool = False
    tokens: int = Field(default=1024, ge=1)


class SmoothQuantSpec(_Strict):
    """Outliers of the inputs are shared with the weights, for schemes that round both.

    alpha: how much of them; "auto" tries 0.4 to 0.9 at each place and none. outputs: also where
    one linear feeds another. tokens: how many the search looks at.
    """

    alpha: Literal["auto"] | Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    outputs: bool = False
    tokens: int = Field(default=2048, ge=1)


class BalanceSpec(_Strict):
    """Columns of a group are made alike in size, where norms or earlier linears can take the other
    half of a scale; see `quant.transforms.balance`. Families that are not known go without.
    tokens: how many tell what an error in a column costs."""

    tokens: int = Field(default=4096, ge=1)


class RotationSpec(_Strict):
    """The residual stream and the value heads are rotated, which spreads outliers over all
    channels; see `quant.transforms.rotated_checkpoint`. seed: of the random signs."""

    seed: int = Field(default=0, ge=0, lt=2**63)


class ExpertsSpec(_Strict):
    """min_tokens: an expert that fewer tokens go to is rounded by statistics of its whole layer,
    too; None: four for each group of its columns, at least 0.5 % of all calibration tokens."""

    min_tokens: int | None = Field(default=None, ge=1)


class CalibrationSpec(_Strict):
    """samples x tokens of text, without padding; `seed` picks windows, or samples `self` text.

    memory_mib: room for the activations of one forward; more samples than fit go in batches.
    carried_mib: room for those that go from layer to layer; more lie in a file, to the same result.
    """

    samples: int = Field(default=128, ge=1, le=65536)
    tokens: int = Field(default=512, ge=8, le=131072)
    seed: int = Field(default=0, ge=0, lt=2**63)
    memory_mib: int = Field(default=4096, ge=1)
    carried_mib: int = Field(default=4096, ge=0)


class Override(_Strict):
    """What differs for the linears that match `pattern`; later overrides win over earlier ones."""

    pattern: str = Field(min_length=1)
    scheme: SchemeSpec | None = None
    algorithm: Algorithm | None = None


class Recipe(_Strict):
    """Which linears become which integers.

    targets, ignore and patterns of overrides: module names with `*` and `?`, or `re:` and a regular
    expression that matches the whole name. allow: deviations that are recorded and do not end the
    run. scales: "range" clips nothing; "search" minimises the weighted error; "signed" does so with
    negative scales too, which symmetric 4-bit groups gain by, and which every reader that
    multiplies by the scale takes; choose "search" for one that insists on positive scales. format:
    the checkpoint to write; gptq, gptq_v2 and awq take float16 scales and no negative ones.
    rotation, smoothquant, balance, awq: what is done, in this order, before a layer is rounded;
    `{}` asks for one as it is, and all of them stack. embeddings, lm_head: schemes of the token
    table and of an output head of its own, which stay as they are without. kv_cache: what a server
    may round the KV cache to, by scales that calibration gives and the checkpoint holds.
    dequantize_source: take a model that is quantized already for the floats that it stands for,
    which is an error otherwise.
    """

    description: str = ""
    algorithm: Algorithm = "gptq"
    scheme: SchemeSpec = SchemeSpec()
    format: Format = "compressed-tensors"
    scales: ScaleChoice = "signed"
    gptq: GptqSpec = GptqSpec()
    targets: tuple[str, ...] = Field(default=("*",), min_length=1, strict=False)
    ignore: tuple[str, ...] = Field(default=("lm_head",), strict=False)
    overrides: tuple[Override, ...] = Field(default=(), strict=False)
    awq: AwqSpec | None = None
    smoothquant: SmoothQuantSpec | None = None
    balance: BalanceSpec | None = None
    rotation: RotationSpec | None = None
    experts: ExpertsSpec = ExpertsSpec()
    embeddings: SchemeSpec | None = None
    lm_head: SchemeSpec | None = None
    kv_cache: KvCache = "none"
    dequantize_source: bool = False
    calibration: CalibrationSpec = CalibrationSpec()
    allow: tuple[Deviation, ...] = Field(default=(), strict=False)

    @property
    def needs_calibration(self) -> bool:
        """False when every linear is rounded to nearest by its weights alone."""
        if any(t is not None for t in (self.awq, self.smoothquant, self.balance)):
            return True
        if any(
            s.stores_input_scale for s in (self.scheme, *(o.scheme for o in self.overrides)) if s
        ):
            return True
        if KV_CACHE_SCHEMES[self.kv_cache] is not None:
            return True
        return self.algorithm != "rtn" or any(
            o.algorithm not in (None, "rtn") for o in self.overrides
        )


def load_recipe(recipe: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A shipped recipe by name, or a YAML file by path, with `key.sub=value` applied first.

    Raises RecipeError for an unknown name, key or value.
    """
    where, text = _read(recipe)
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise RecipeError(f"{where}: is not valid YAML ({problem})") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise RecipeError(f"{where}: holds no mapping of recipe keys")
    for override in overrides:
        _apply(data, override)
    return parse_recipe(data, where)


def parse_recipe(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A Recipe from plain data. Raises RecipeError naming the key and the nearest valid one."""
    try:
        return Recipe.model_validate(dict(data))
    except ValidationError as error:
        raise RecipeError(f"{where}: {_explain(error)}") from error


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in files("recipes").iterdir()
        if entry.name.endswith(".yaml")
    )


def _read(recipe: str | Path) -> tuple[str, str]:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            return str(path), path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read ({error})") from error
    names = recipe_names()
    if str(recipe) not in names:
        close = difflib.get_close_matches(str(recipe), names, n=1, cutoff=0.0)
        raise RecipeError(
            f"'{recipe}' is neither a file nor a shipped recipe; did you mean "
            f"'{close[0] if close else ''}'? Shipped are {', '.join(names)}"
        )
    return str(recipe), (files("recipes") / f"{recipe}.yaml").read_text(encoding="utf-8")


def _apply(data: dict[str, Any], override: str) -> None:
    """Set a dotted key; its value is read as YAML, so 4 is a number and [a, b] a list."""
    key, equals, value = override.partition("=")
    if not equals or not all(part for part in key.split(".")):
        raise RecipeError(f"'{override}': write it as key=value, e.g. scheme.group_size=128")
    *owners, last = key.split(".")
    for owner in owners:
        inner = data.setdefault(owner, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"'{override}': '{owner}' holds no keys")
        data = inner
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"'{override}': the value is not valid YAML") from error


def _explain(error: ValidationError) -> str:
    """The first problem as a sentence; a misspelt key comes before the key that it leaves unset."""
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        valid = _valid_keys(path[:-1])
        close = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.0)
        return f"unknown key '{key}'; did you mean '{'.'.join([*path[:-1], *close])}'?"
    if first["type"] == "missing":
        return f"'{key}' is missing"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"'{key}' is {first['input']!r}: {message}"


def _valid_keys(path: list[str]) -> list[str]:
    owners: dict[str, type[BaseModel]] = {
        "scheme": SchemeSpec,
        "gptq": GptqSpec,
        "awq": AwqSpec,
        "balance": BalanceSpec,
        "smoothquant": SmoothQuantSpec,
        "rotation": RotationSpec,
        "experts": ExpertsSpec,
        "calibration": CalibrationSpec,
        "overrides": Override,
    }
    owner: type[BaseModel] = Recipe
    for part in path:
        owner = owners.get(part, owner)
    return list(owner.model_fields)
