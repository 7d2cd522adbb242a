"""How much a JSON text would make, found before anything of it is made."""

import re
from itertools import islice

MAX_VALUES = 32_768
"""Texts, lists and objects of one body. Numbers are not counted, whether in lists or by name: a
prompt may be given as a million token ids, and a bias for each token of a vocabulary."""

# What is taken never goes back, so that time stays linear in the text; a text without an end takes
# all that is left.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?+\Z)'
_NAMED_NUMBERS = rb"(?:" + _STRING + rb"\s*+:\s*+[-+0-9.eE]++\s*+,?+\s*+)++"
_VALUE = re.compile(_NAMED_NUMBERS + rb"|" + _STRING + rb"|[\[{]", re.DOTALL)
_PLACE = re.compile(_NAMED_NUMBERS + rb"|(" + _STRING + rb")\s*+(:?+)|([\[{])|[\]}]", re.DOTALL)


def overfull_field(body: bytes, limit: int = MAX_VALUES) -> str | None:
    """The member of `body`, a JSON object, in which the count of values passes `limit`; empty where
    that is in none. None where there are fewer. What is no JSON gives either."""
    # Most bodies are told by bytes that are counted at once.
    if body.count(b'"') // 2 + body.count(b"[") + body.count(b"{") <= limit:
        return None
    value = next(islice(_VALUE.finditer(body), limit, None), None)
    return None if value is None else _field_at(body, value.start())


def _field_at(body: bytes, end: int) -> str:
    """The last member of the object itself that is named before `end`."""
    name, depth = b"", 0
    for token in _PLACE.finditer(body, 0, end):
        text, colon, opens = token.groups()
        if text is None:
            depth += 1 if opens else -1 if token[0] in b"]}" else 0
        elif depth == 1 and colon:
            name = text
    return name.strip(b'"').decode(errors="replace")
