"""Which JSON schemas can be honoured: what a schema says is enforced, or the schema is refused.

llguidance refuses most of what it does not know. Here are the rest: keywords of other drafts, which
it takes for unknown ones; its own options, which could turn enforcement off; counts of properties
that a repeated key would defeat; and keywords that say nothing, which need not be refused.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from runtime.confined.messages import Refused

HONOURED = (
    "type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions",
    "properties", "required", "additionalProperties", "patternProperties", "minProperties",
    "maxProperties", "items", "prefixItems", "additionalItems", "minItems", "maxItems",
    "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf",
)  # fmt: skip
REFUSED = (
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems",
    "propertyNames", "dependencies", "dependentRequired", "dependentSchemas",
    "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$dynamicAnchor",
    "$recursiveRef", "$recursiveAnchor", "extends", "disallow", "divisibleBy", "x-guidance",
)  # fmt: skip
FORMATS = (
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
)  # fmt: skip
_NEUTRAL: Mapping[str, Any] = {
    "uniqueItems": False,
    "unevaluatedProperties": True,
    "unevaluatedItems": True,
    "$recursiveAnchor": False,
}
"""Values with which a refused keyword changes nothing."""
ANNOTATIONS = (
    "$schema", "$id", "id", "$anchor", "$comment", "$vocabulary", "title", "description",
    "default", "examples", "readOnly", "writeOnly", "deprecated", "contentMediaType",
    "contentEncoding", "contentSchema",
)  # fmt: skip
"""Keywords that say nothing of which documents are valid."""

_ONE = ("items", "additionalItems", "additionalProperties")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
MAX_SCHEMAS = 20_000


def prepare(schema: Any) -> Any:
    """`schema` without what says nothing; it is changed in place. Raises Refused naming the first
    keyword that cannot be honoured, and its place."""
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise Refused(
            "no document satisfies it" if schema is False else "a schema is an object or a boolean"
        )
    seen: set[int] = set()
    todo: list[tuple[str, Any]] = [("", schema)]
    while todo:
        place, node = todo.pop()
        if not isinstance(node, dict) or id(node) in seen:
            continue
        seen.add(id(node))
        if len(seen) > MAX_SCHEMAS:
            raise Refused(f"it has more than {MAX_SCHEMAS} parts")
        _check(node, place)
        todo += _parts(node, place)
        todo += _target(schema, node, place)
    return schema


def _check(node: dict[str, Any], place: str) -> None:
    for keyword, neutral in _NEUTRAL.items():
        if node.get(keyword) is neutral:
            del node[keyword]
    if "if" not in node or not {"then", "else"} & node.keys():
        for keyword in ("if", "then", "else"):
            node.pop(keyword, None)
    for keyword in REFUSED:
        if keyword in node:
            raise Refused(f"the keyword '{keyword}' at {place or '/'} cannot be enforced")
    _check_format(node, place)
    _check_min_properties(node, place)


def _check_format(node: dict[str, Any], place: str) -> None:
    """Formats are of strings; with other types they say nothing."""
    if "format" not in node or node["format"] in FORMATS:
        return
    types = node.get("type", "string")
    if "string" in (types if isinstance(types, list) else [types]):
        raise Refused(
            f"the keyword 'format' at {place or '/'} is {str(node['format'])[:40]!r}; enforced are "
            f"{', '.join(FORMATS)}"
        )
    del node["format"]


def _check_min_properties(node: dict[str, Any], place: str) -> None:
    """Keys outside `properties` may come twice, and then count once."""
    required = node.get("required")
    sure = len(set(map(str, required))) if isinstance(required, list) else 0
    least = node.get("minProperties")
    if isinstance(least, int) and least > max(1, sure):
        raise Refused(
            f"the keyword 'minProperties' at {place or '/'} cannot be enforced above the number of "
            f"required properties"
        )


def _parts(node: dict[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    for keyword, value in node.items():
        if keyword in _ONE and isinstance(value, dict):
            yield f"{place}/{keyword}", value
        elif keyword in _LISTS and isinstance(value, list):
            for index, part in enumerate(value):
                yield f"{place}/{keyword}/{index}", part
        elif keyword in _MAPS and isinstance(value, dict):
            for name, part in value.items():
                yield f"{place}/{keyword}/{name[:50]}", part


def _target(root: Any, node: dict[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    """What a reference into this schema points at, wherever that is (RFC 6901)."""
    reference = node.get("$ref")
    if not isinstance(reference, str):
        return
    if not reference.startswith("#") and "$id" not in root and "id" not in root:
        raise Refused(
            f"the keyword '$ref' at {place or '/'} points outside the schema, and nothing is "
            f"fetched"
        )
    target = root
    for step in reference.removeprefix("#").split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and step.isdecimal() and int(step) < len(target):
            target = target[int(step)]
        elif isinstance(target, dict) and step in target:
            target = target[step]
        else:
            return
    yield reference[:100], target
