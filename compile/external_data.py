"""Where the weights of an ONNX graph may lie: in plain files below its own directory."""

import re
import stat
from pathlib import Path, PurePosixPath

_DRIVE = re.compile("[A-Za-z]:")


class MisplacedError(ValueError):
    """What is wrong with the place, as a clause of a sentence."""


def external_size(graph: Path, location: str) -> int:
    """Bytes of the file that a graph names, which nobody could have put in the place of another.

    Raises MisplacedError. Nothing outside of the graph's directory is even looked at.
    """
    location = location.replace("\\", "/")
    parts = PurePosixPath(location).parts
    if not location or "\0" in location or location.startswith("/") or _DRIVE.match(location):
        raise MisplacedError("a weight is to be read from an absolute path")
    if ".." in parts:
        raise MisplacedError("a weight is to be read from outside of the graph's directory (..)")
    path = graph.parent / location
    try:
        straight = path.parent.resolve() == graph.parent.resolve().joinpath(*parts[:-1])
        found = path.lstat()
    except (OSError, RuntimeError) as error:
        raise MisplacedError(f"the file of its weights, {location[:200]}, is missing") from error
    if not straight or stat.S_ISLNK(found.st_mode):
        raise MisplacedError("a weight is to be read through a symbolic link")
    if not stat.S_ISREG(found.st_mode):
        raise MisplacedError("a weight is to be read from what is no plain file")
    if found.st_nlink != 1:
        raise MisplacedError("the file of a weight has a second name elsewhere (a hard link)")
    return found.st_size


def check_bounds(offset: int, length: int, size: int) -> None:
    """Raises MisplacedError."""
    if offset < 0 or length < 0 or offset + length > size:
        raise MisplacedError("a weight lies beyond the end of its file")
