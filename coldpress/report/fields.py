"""Reads JSON that others may have written: every value is checked before it is believed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quant.format.errors import FileFormatError, InputError

MAX_JSON_BYTES = 64 << 20
MAX_LIST = 1000
MAX_NUMBER = 1e30
"""Nothing that is measured here comes near; plots of larger numbers would overflow."""


def read_table(path: Path) -> dict[str, Any]:
    """The JSON object of a file. Raises InputError, or FileFormatError when it holds none."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise FileFormatError(path, f"is larger than {MAX_JSON_BYTES:,} bytes")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise FileFormatError(path, "is not JSON") from error
    if not isinstance(value, dict):
        raise FileFormatError(path, "is not a JSON object")
    return value


def number(table: Mapping[str, Any], key: str) -> float | None:
    """A number within reason; None for everything else, as JSON says it of what is not finite."""
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < MAX_NUMBER else None


def whole(table: Mapping[str, Any], key: str) -> int | None:
    """An integer, or None."""
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if abs(value) < MAX_NUMBER else None


def numbers(table: Mapping[str, Any], key: str) -> list[float]:
    """A list of numbers within reason; an empty one for everything else."""
    values = table.get(key)
    if not isinstance(values, list) or len(values) > MAX_LIST:
        return []
    found = [number({key: value}, key) for value in values]
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else []


def sub(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A table inside a table; an empty one where there is none."""
    value = table.get(key)
    return value if isinstance(value, dict) else {}


def word(table: Mapping[str, Any], key: str) -> str | None:
    """A text, or None."""
    value = table.get(key)
    return value if isinstance(value, str) else None
