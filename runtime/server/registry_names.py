"""Aliases: names that stand for models, by weight."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate

from quant.format.errors import InputError

MAX_NAME = 200


@dataclass(frozen=True)
class Alias:
    """A name for several models, each with its weight; one model alone gets every request."""

    name: str
    targets: tuple[tuple[str, float], ...]

    def choose(self, point: float) -> str:
        """The model whose part of [0, 1) holds `point`; parts are as wide as weights."""
        edges = list(accumulate(weight for _, weight in self.targets))
        return next(
            (
                name
                for (name, _), edge in zip(self.targets, edges, strict=True)
                if point * edges[-1] < edge
            ),
            self.targets[-1][0],
        )

    def point_of(self, key: str) -> float:
        """A point in [0, 1) that is the same for the same key, and evenly spread over keys."""
        digest = sha256(f"{self.name}\0{key}".encode(errors="surrogatepass")).digest()
        return int.from_bytes(digest[:6], "big") / 2**48


@dataclass(frozen=True)
class Shadow:
    """A part of the requests to `model`, in (0, 1], is copied to `copy_to`."""

    model: str
    copy_to: str
    share: float


def parse_alias(text: str) -> Alias:
    """`prod=a:90,b:10`, or `prod=a`. InputError for anything else."""
    name, equals, rest = text.partition("=")
    parts = rest.split(",")
    if not name or not equals or not all(parts):
        raise InputError(f"--alias '{text}' is not of the form NAME=MODEL or NAME=A:90,B:10")
    if len(parts) == 1 and (":" not in rest or _number(rest.rpartition(":")[2]) is None):
        return Alias(name, ((rest, 1.0),))
    return Alias(name, tuple(_weighted(text, part) for part in parts))


def parse_shadow(text: str) -> Shadow:
    """`a=b:0.1`. InputError for anything else."""
    model, equals, rest = text.partition("=")
    copy_to, colon, share = rest.rpartition(":")
    number = _number(share)
    if not (model and equals and copy_to and colon) or number is None or not 0 < number <= 1:
        raise InputError(
            f"--shadow '{text}' is not of the form A=B:SHARE with a share above 0 and at most 1, "
            "such as a=b:0.1"
        )
    return Shadow(model, copy_to, number)


def check_names(
    models: Collection[str], aliases: Iterable[Alias], shadows: Iterable[Shadow]
) -> None:
    """InputError for the first name that is taken twice, cannot be asked for, or leads nowhere."""
    seen: set[str] = set()
    for name in (*models, *(alias.name for alias in aliases)):
        if name in seen:
            raise InputError(f"two models or aliases are called '{name}'; name each of them once")
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise InputError(f"'{name[:50]}' cannot be a model's name; use 1 to {MAX_NAME} letters")
        seen.add(name)
    for alias in aliases:
        for target, _ in alias.targets:
            _check_target(f"the alias '{alias.name}'", target, models)
    for shadow in shadows:
        for target in (shadow.model, shadow.copy_to):
            _check_target(f"the shadow of '{shadow.model}'", target, models)
        if shadow.model == shadow.copy_to:
            raise InputError(f"'{shadow.model}' cannot be its own shadow; name another model")


def _check_target(what: str, target: str, models: Collection[str]) -> None:
    if target not in models:
        raise InputError(f"{what} names '{target}', but the models are: {', '.join(models)}")


def _weighted(text: str, part: str) -> tuple[str, float]:
    model, colon, weight = part.rpartition(":")
    number = _number(weight)
    if not model or not colon or number is None or not 0 < number < float("inf"):
        raise InputError(
            f"--alias '{text}': '{part}' is not of the form MODEL:WEIGHT with a weight above 0"
        )
    return model, number


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
