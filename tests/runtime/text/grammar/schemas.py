"""Random JSON schemas of bounded size, each of which some small document satisfies."""

import random
from typing import Any

_PATTERNS = ("^[a-z]{1,4}$", "^(red|green)-[0-9]{2}$", "^[A-Z][a-z]*$", "[0-9]", "^a?b{2,3}c*$")
_FORMATS = ("date", "uuid", "ipv4", "time")
_NAMES = ("name", "size", "tags", "x y", 'q"uote', "é", "next", "kind")


def random_schema(seed: int) -> dict[str, Any]:
    """An object, an array or a scalar; nested at most three deep, sometimes recursive."""
    pick = random.Random(seed)
    if seed % 8 == 0:
        return _recursive(pick)
    return _any(pick, 3)


def _any(pick: random.Random, depth: int) -> dict[str, Any]:
    scalars = [_string, _integer, _number, _choice, _constant, _either]
    nested = [_object, _object, _array, _tuple, _any_of]
    makers = [*scalars, *nested] if depth else scalars
    return pick.choice(makers)(pick, depth - 1)


def _string(pick: random.Random, _: int) -> dict[str, Any]:
    kind = pick.randrange(3)
    if kind == 0:
        low = pick.randrange(3)
        return {"type": "string", "minLength": low, "maxLength": low + pick.randrange(1, 6)}
    if kind == 1:
        return {"type": "string", "pattern": pick.choice(_PATTERNS), "maxLength": 12}
    return {"type": "string", "format": pick.choice(_FORMATS)}


def _integer(pick: random.Random, _: int) -> dict[str, Any]:
    low = pick.randrange(-500, 500)
    bounds = pick.choice(
        [
            {"minimum": low, "maximum": low + pick.randrange(200)},
            {"exclusiveMinimum": low, "exclusiveMaximum": low + 2 + pick.randrange(50)},
            {"minimum": 0, "maximum": 90, "multipleOf": pick.choice([2, 3, 10])},
        ]
    )
    return {"type": "integer", **bounds}


def _number(pick: random.Random, _: int) -> dict[str, Any]:
    low = pick.randrange(-100, 100) / 4
    return {"type": "number", "minimum": low, "maximum": low + pick.randrange(1, 20)}


def _choice(pick: random.Random, _: int) -> dict[str, Any]:
    values = ["red", "gr\nün", 'a"b', 1, 2.5, None, True, [1, "x"], {"a": 0}]
    return {"enum": pick.sample(values, pick.randrange(1, 5))}


def _constant(pick: random.Random, _: int) -> dict[str, Any]:
    return {"const": pick.choice(["fixed", -7, None, False, ["a"], {"k": "v"}])}


def _either(pick: random.Random, _: int) -> dict[str, Any]:
    return {"type": pick.sample(["null", "boolean", "integer"], 2), "maximum": 9, "minimum": -9}


def _array(pick: random.Random, depth: int) -> dict[str, Any]:
    low = pick.randrange(3)
    return {
        "type": "array",
        "items": _any(pick, depth),
        "minItems": low,
        "maxItems": low + pick.randrange(3),
    }


def _tuple(pick: random.Random, depth: int) -> dict[str, Any]:
    parts = [_any(pick, depth) for _ in range(pick.randrange(1, 4))]
    return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}


def _any_of(pick: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_any(pick, depth) for _ in range(pick.randrange(2, 4))]}


def _object(pick: random.Random, depth: int) -> dict[str, Any]:
    names = pick.sample(_NAMES, pick.randrange(1, 5))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _any(pick, depth) for name in names},
        "required": pick.sample(names, pick.randrange(len(names) + 1)),
        "additionalProperties": False,
    }
    if pick.random() < 0.2:
        schema["additionalProperties"] = {"type": "integer", "minimum": 0, "maximum": 9}
        schema["maxProperties"] = len(schema["required"]) + 2
        schema["properties"] = {name: schema["properties"][name] for name in schema["required"]}
    if pick.random() < 0.2:
        schema = {"allOf": [schema], "description": "kept apart"}
    return schema


def _recursive(pick: random.Random) -> dict[str, Any]:
    node = {
        "type": "object",
        "properties": {
            "value": _any(pick, 0),
            "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        },
        "required": ["value", "next"],
        "additionalProperties": False,
    }
    return {"$ref": "#/$defs/node", "$defs": {"node": node}}
