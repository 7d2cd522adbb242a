"""API keys: read from a file, compared in constant time, each with limits of its own."""

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from quant.format.errors import InputError

MAX_FILE_BYTES = 1 << 20
LEAST_KEY_CHARACTERS = 16
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBERS = ("requests_per_minute", "tokens_per_minute", "concurrent")
_FIELDS = frozenset(("name", "key", "sha256", "admin", *_NUMBERS))


@dataclass(frozen=True)
class ApiKey:
    """digest: sha256 of the key, which itself is kept nowhere. None as a limit means none. admin:
    whether it may load and unload models."""

    name: str
    digest: bytes
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    admin: bool = False


class KeyRing:
    """All keys of a server."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self.keys = tuple(keys)

    @classmethod
    def of(cls, key: str) -> "KeyRing":
        """One key that may do everything."""
        return cls([ApiKey("key", sha256(key.encode()).digest(), admin=True)])

    def find(self, token: bytes) -> ApiKey | None:
        """The key that `token` is. Takes as long for a wrong one, whichever it resembles."""
        digest = sha256(token).digest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found


def read_keys(path: Path) -> KeyRing:
    """Keys of a YAML file: a list of entries with a name, and the key or its sha256.

    Raises InputError for anything that it does not understand.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path}: is larger than {MAX_FILE_BYTES} bytes")
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"{path}: the API keys cannot be read: {reason}") from error
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f"{path}: holds no keys; write a list of entries such as '- {{name: alice, key: ...}}'"
        )
    keys = [_key(path, index, entry) for index, entry in enumerate(entries)]
    for what, values in (("name", [k.name for k in keys]), ("key", [k.digest for k in keys])):
        if len(set(values)) < len(values):
            raise InputError(f"{path}: two entries have the same {what}")
    return KeyRing(keys)


def _key(path: Path, index: int, entry: Any) -> ApiKey:
    where = f"{path}: entry {index + 1}"
    if not isinstance(entry, dict) or not set(entry) <= _FIELDS:
        known = ", ".join(sorted(_FIELDS))
        raise InputError(f"{where} must be a mapping with fields of {known}")
    name = entry.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"{where} needs a name of letters, digits, dots, dashes: it is in metrics")
    admin = entry.get("admin", False)
    if not isinstance(admin, bool):
        raise InputError(f"{where}: admin must be true or false")
    limits = {field: _limit(where, field, entry.get(field)) for field in _NUMBERS}
    return ApiKey(name, _digest(where, entry), **limits, admin=admin)


def _digest(where: str, entry: dict[str, Any]) -> bytes:
    key, digest = entry.get("key"), entry.get("sha256")
    if (key is None) == (digest is None):
        raise InputError(f"{where} needs either 'key' or 'sha256'")
    if digest is not None:
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise InputError(f"{where}: sha256 must be 64 hexadecimal digits in small letters")
        return bytes.fromhex(digest)
    if not isinstance(key, str) or len(key) < LEAST_KEY_CHARACTERS or not key.isascii():
        raise InputError(
            f"{where}: key must be text of at least {LEAST_KEY_CHARACTERS} ASCII characters"
        )
    return sha256(key.encode()).digest()


def _limit(where: str, field: str, value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise InputError(f"{where}: {field} must be a whole number of at least 1")
    return value
