"""HTML as nested elements: text is escaped unless it is Markup, and every tag is closed."""

import re
from html import escape

VOID = frozenset({"meta", "br"})
_NOT_SHOWN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Characters that a page must not hold, or that would turn the text around them."""


class Markup(str):
    """Finished HTML, which is not escaped again."""


def text(value: str) -> Markup:
    """A text from anywhere, safe between tags and inside quoted attributes."""
    return Markup(escape(_NOT_SHOWN.sub("\ufffd", value)))


def element(name: str, /, *children: str, **attributes: str | float) -> Markup:
    """`<name attributes>children</name>`.

    `class_` stands for class, `stroke_width` for stroke-width. Numbers keep two decimals.
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
    )
    if name in VOID:
        return Markup(f"<{name}{shown}>")
    return Markup(f"<{name}{shown}>{join(children)}</{name}>")


def join(children: "tuple[str, ...] | list[str]", between: str = "") -> Markup:
    """Children one after the other, each escaped unless it is Markup."""
    return Markup(between.join(c if isinstance(c, Markup) else text(c) for c in children))


def _attribute(value: str | float) -> str:
    return text(value) if isinstance(value, str) else f"{round(value, 2):g}"
