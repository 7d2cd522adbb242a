"""Options that belong together and reach a command as one argument."""

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])
Option = Callable[[Callable[..., Any]], Callable[..., Any]]


def option_group(
    name: str, options: Sequence[Option], make: Callable[..., object]
) -> Callable[[F], F]:
    """The command has the options, in this order, and gets what `make` makes of them as `name`.

    make: its parameters are named as the options' values are.
    """
    parts = tuple(signature(make).parameters)

    def decorate(function: F) -> F:
        @wraps(function)
        def with_group(*args: Any, **kwargs: Any) -> Any:
            whole = make(**{part: kwargs.pop(part) for part in parts})
            return function(*args, **{name: whole}, **kwargs)

        wrapped: Callable[..., Any] = with_group
        for option in reversed(options):
            wrapped = option(wrapped)
        return cast(F, wrapped)

    return decorate
