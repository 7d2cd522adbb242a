"""From what a user types to the directory or file of a model."""

from pathlib import Path

from coldpress.loading import default_name
from coldpress.store.local import Store
from coldpress.store.names import find_name
from quant.format.errors import InputError


def resolve(text: str, store: Store | None = None) -> tuple[str, Path]:
    """The name that a model has in requests, and where it lies: a path that exists, else a model of
    the store. A path that does not exist and can be no name comes back as it is, since whoever
    opens it says best what is missing; InputError for a name that nothing has."""
    path = Path(text)
    name = find_name(text)
    if path.exists() or name is None:
        return default_name(path), path
    store = store or Store()
    entry = store.find(name)
    if entry is None:
        raise InputError(
            f"{text}: no such file or directory, and the store has no such model; it "
            f"{store.known()} (coldpress pull brings one)"
        )
    return str(name), store.directory(entry)


def path_of(text: str) -> Path:
    """As `resolve`, but a name that nothing has comes back as the path that it would be."""
    name = find_name(text)
    if Path(text).exists() or name is None or Store().find(name) is None:
        return Path(text)
    return resolve(text)[1]
