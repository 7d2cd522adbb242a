"""The tasks of the process that runs chat templates; imported there, never by the server.

A template is a program that came with a model. Here it is parsed, too: jinja2 computes constant
expressions while it parses.
"""

import contextlib
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError

from runtime.confined.messages import Refused
from runtime.text.sandbox import MAX_STEPS, TemplateEnvironment, steps_left

MAX_OUTPUT_CHARACTERS = 16 * 1024 * 1024
MAX_SECONDS = 1.5
"""Asked between pieces of output; what makes none for longer is killed from outside."""
MAX_TEMPLATES = 64
_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)

_environment = TemplateEnvironment()
_parsed: "OrderedDict[str, jinja2.Template]" = OrderedDict()


def parse(source: str) -> str:
    """Remember a template; its key. Refused (kind "syntax") where it does not parse."""
    key = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
    if key not in _parsed:
        try:
            _parsed[key] = _environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise Refused(str(error), "syntax") from error
        while len(_parsed) > MAX_TEMPLATES:
            _parsed.popitem(last=False)
    return key


def render(key: str, context: Mapping[str, Any]) -> str:
    """Refused with kind "unknown" for a template that this process has not parsed (yet), with kind
    "template" where the template does not take what it is given."""
    template = _parsed.get(key)
    if template is None:
        raise Refused("not parsed here", "unknown")
    _parsed.move_to_end(key)
    try:
        return _bounded(template.generate(context))
    except _FAULTS as error:
        raise Refused(str(error)[:300] or type(error).__name__, "template") from error


def render_source(source: str, context: Mapping[str, Any]) -> str:
    """Both at once, for a template that another process has parsed."""
    return render(parse(source), context)


def _bounded(chunks: Iterator[str]) -> str:
    steps_left.set(MAX_STEPS)
    deadline = time.monotonic() + MAX_SECONDS
    parts, size = [], 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > MAX_OUTPUT_CHARACTERS:
            raise SecurityError(f"its output is longer than {MAX_OUTPUT_CHARACTERS} characters")
        if time.monotonic() > deadline:
            raise SecurityError(f"it runs for more than {MAX_SECONDS:g} s")
    return "".join(parts)


def _warm() -> None:
    """Open now what the time zone, filters and error messages open when they are first used."""
    key = parse(
        "{% for m in messages %}{{ m | tojson(indent=1) }}{{ m.a | trim | title | e }}"
        "{{ m.items() | list | sort | join(',') | upper | length }}{% endfor %}"
        "{{ strftime_now('%d %b %Y') }}{% generation %}{% endgeneration %}"
    )
    render(key, {"messages": [{"a": "x"}]})
    for faulty in ("{{ messages.a.b }}", "{{ raise_exception('x') }}"):
        with contextlib.suppress(Refused):
            render(parse(faulty), {})
    datetime.now().astimezone()
    json.loads("[1.5]")
    _parsed.clear()


_warm()
TASKS = {"parse": parse, "render": render, "render_source": render_source}
