"""Names of models in the store: `smollm2`, `org/smollm2:q4`."""

import re
from dataclasses import dataclass

from quant.format.errors import InputError

DEFAULT_TAG = "latest"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(rf"({_PART}(?:/{_PART}){{0,3}})(?::([A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}))?")
_MAX_NAME = 128


@dataclass(frozen=True, order=True)
class ModelName:
    """A name and one of its tags."""

    name: str
    tag: str = DEFAULT_TAG

    def __str__(self) -> str:
        return self.name if self.tag == DEFAULT_TAG else f"{self.name}:{self.tag}"

    @property
    def short(self) -> str:
        """The last part of the name, which is what a directory of the model is called."""
        return self.name.rpartition("/")[2]


def find_name(text: str) -> ModelName | None:
    """The name that `text` is; None if it cannot be one."""
    match = _NAME.fullmatch(text)
    if match is None or len(match[1]) > _MAX_NAME:
        return None
    return ModelName(match[1], match[2] or DEFAULT_TAG)


def parse_name(text: str) -> ModelName:
    """As `find_name`, but InputError if it cannot be one."""
    found = find_name(text)
    if found is None:
        raise InputError(
            f"'{text[:100]}' cannot be a name in the store; use letters, digits, '.', '_' and '-', "
            "with '/' between parts and ':' before a tag, such as org/smollm2:q4"
        )
    return found
