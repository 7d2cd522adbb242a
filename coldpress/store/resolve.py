"""From what a user types to the directory or file of a model."""

from pathlib import Path

from coldpress.loading import default_name
from coldpress.store.local import Store
from coldpress.store.names import find_name


def resolve(text: str, store: Store | None = None) -> tuple[str, Path]:
    """The name that a model has in requests, and where it lies: a path that exists, else a model of
    the store, else the path as it is, since whoever opens it says best what is missing."""
    path = Path(text)
    name = find_name(text)
    if path.exists() or name is None:
        return default_name(path), path
    store = store or Store()
    entry = store.find(name)
    if entry is not None:
        return str(name), store.directory(entry)
    return default_name(path), path
