"""Optional packages of this room, imported here and nowhere else at the top of a module."""

from importlib import import_module
from types import ModuleType

from quant.format.errors import MissingExtraError


def require(package: str, feature: str) -> ModuleType:
    """The imported `package`, or MissingExtraError naming the extra that brings it."""
    try:
        return import_module(package)
    except ImportError as error:
        if (error.name or package).partition(".")[0] != package.partition(".")[0]:
            raise
        raise MissingExtraError(feature, package, "quantize") from error
