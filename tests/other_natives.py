"""A pytest plugin: native modules come from the folder that COLDPRESS_NATIVE names.

Everything else is imported as ever, so that tests run on a build with sanitizers without another
environment: COLDPRESS_NATIVE=FOLDER python -m pytest -p tests.other_natives ... Such a build is
slow, and its checks see every access, so properties are tried on a few examples.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

EXAMPLES = 6
MODULES = frozenset(
    {
        "runtime.kernels.cpu._native",
        "quant.format.native._blocks",
        "quant.kernels._moments",
        "quant.kernels._rounding",
    }
)


class OtherNatives:
    """Finds the native modules, and no other, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve(strict=True)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raises FileNotFoundError for a native module that the folder lacks: to run another one in
        silence would prove nothing."""
        if name not in MODULES:
            return None
        *rooms, module = name.split(".")
        found = list(self.folder.joinpath(*rooms).glob(f"{module}.*.so"))
        if len(found) != 1:
            raise FileNotFoundError(f"{self.folder} does not hold one build of {name}: {found}")
        return spec_from_file_location(name, found[0])


sys.meta_path.insert(0, OtherNatives(Path(os.environ["COLDPRESS_NATIVE"])))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        test = getattr(item, "obj", None)
        own = getattr(test, "_hypothesis_internal_use_settings", None)
        if test is not None and own is not None:
            fewer = min(own.max_examples, EXAMPLES)
            test._hypothesis_internal_use_settings = settings(own, max_examples=fewer)
