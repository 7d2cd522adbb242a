"""Which files a model in the store may consist of, and under which names."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from quant.format.errors import InputError

MAX_FILES = 10_000
MAX_PATH = 255
MAX_DEPTH = 5
_PART = re.compile(r"[A-Za-z0-9_@+=,()\[\]{} -][A-Za-z0-9._@+=,()\[\]{} -]*")
WEIGHTS = (".safetensors", ".gguf", ".onnx", ".data", ".onnx_data")
TEXT = (".json", ".txt", ".jinja", ".model")
ENGINES = (".engine", ".plan")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".joblib", ".h5")
"""Formats that run code when they are read, or whose readers do."""


def check_path(path: str, where: str) -> str:
    """`path` if it names a file below a directory, whatever the file system; InputError if not."""
    parts = path.split("/")
    fits = len(path) <= MAX_PATH and len(parts) <= MAX_DEPTH
    if not fits or not all(
        _PART.fullmatch(part) and not part.endswith((" ", ".")) for part in parts
    ):
        raise InputError(f"{where}: the file name {path[:100]!r} is not one that we write; refused")
    return path


def check_paths(paths: Iterable[str], where: str) -> None:
    """As `check_path` for each; InputError also where two are the same but for their case, or one
    is a directory of another."""
    seen: dict[str, str] = {}
    for path in paths:
        check_path(path, where)
        if len(seen) >= MAX_FILES:
            raise InputError(f"{where}: has more than {MAX_FILES} files, too many for a model")
        if seen.setdefault(path.casefold(), path) is not path:
            raise InputError(f"{where}: has {path!r} twice, perhaps in another case; refused")
    for path in seen:
        if any(str(parent) in seen for parent in PurePosixPath(path).parents):
            raise InputError(f"{where}: {path!r} lies below a file; refused")


def is_wanted(path: str) -> bool:
    """Whether a file of a remote model is one that we read; pickles, code and images are not."""
    return path.lower().endswith((*WEIGHTS, *TEXT))


def check_weights(paths: Iterable[str], where: str) -> None:
    """InputError where nothing, or nothing safe, holds weights."""
    names = list(paths)
    if any(name.lower().endswith((*WEIGHTS, *ENGINES)) for name in names):
        return
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    if pickles:
        raise InputError(
            f"{where}: its weights are {pickles[0]}, which runs code when it is read; convert it "
            "to safetensors first"
        )
    raise InputError(f"{where}: holds no weights (.safetensors, .gguf or .onnx)")
