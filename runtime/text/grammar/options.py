"""How JSON may be laid out in constrained answers."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

JSON_OPTIONS: "JsonCompileOptions" = {
    "whitespace_pattern": r"[ ]|\n[ \t]{0,64}",
    "lenient": False,
    "coerce_one_of": False,
}
"""A space, or a new line and its indentation: a model may print its JSON nicely, yet never lose
itself in white space."""


def inline_schema(schema: Mapping[str, Any]) -> str:
    """A JSON schema as a part of a Lark grammar; references in it count from its own root."""
    return f"%json {json.dumps({**schema, 'x-guidance': JSON_OPTIONS})}"
