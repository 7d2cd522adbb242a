"""The jinja2 environment that chat templates run in.

What it renders is what transformers renders. Beyond jinja2's immutable sandbox it counts loop
steps and refuses operators whose result would be huge. Methods and filters of text are not counted:
the process that templates run in (`rendering`) bounds their memory and time from outside.
"""

import json
import re
from collections.abc import Callable, Iterable, Sized
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.nodes import CallBlock, Filter, For, Node, Template
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 1_000_000
MAX_VALUE = 16 * 1024 * 1024
_WIDTH = re.compile(r"\d{4}|\*")

steps_left: ContextVar[int] = ContextVar("steps_left", default=MAX_STEPS)
"""Loop steps that the rendering in progress may still take."""


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """As transformers makes it: trimmed blocks, loop controls, tojson that escapes nothing."""

    intercepted_binops = frozenset(["*", "**", "%", "+", "~"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
        )
        self.filters["tojson"] = _to_json
        self.filters["counted_loop"] = _counted
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)

    def _parse(self, source: str, name: str | None, filename: str | None) -> Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(For):
            loop.iter = Filter(loop.iter, "counted_loop", [], [], None, None, lineno=loop.lineno)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if _result_size(operator, left, right) > MAX_VALUE:
            raise SecurityError(f"operator '{operator}' would make a value that is too large")
        return super().call_binop(context, operator, left, right)


class _GenerationTag(Extension):
    """{% generation %} marks the assistant's own text for training; here its body is just text."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def _counted(items: Iterable[Any]) -> Sized:
    sized = items if isinstance(items, Sized) else list(items)
    left = steps_left.get() - len(sized)
    if left < 0:
        raise SecurityError(f"its loops take more than {MAX_STEPS} steps")
    steps_left.set(left)
    return sized


def _result_size(operator: str, left: Any, right: Any) -> int:
    """An upper bound on the elements or digits of the result; cheap to find."""
    sizes = [len(side) for side in (left, right) if isinstance(side, str | list | tuple)]
    numbers = [abs(side) for side in (left, right) if isinstance(side, int)]
    match operator:
        case "+":
            return sum(sizes)
        case "*":
            return sum(sizes) * sum(numbers)
        case "**":
            return 0 if len(numbers) < 2 else numbers[0].bit_length() * numbers[1]
        case "%" if isinstance(left, str) and _WIDTH.search(left):
            return MAX_VALUE + 1
    return 0


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
