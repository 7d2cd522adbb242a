"""Prints what this environment has installed that can change a result."""

import hashlib
import importlib.util
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "coldpress", "llmcompressor", "compressed-tensors", "llama_cpp_python", "torch",
    "transformers", "tokenizers", "numpy",
)  # fmt: skip
COLDPRESS = ("quant", "compile", "coldpress", "recipes")
SOURCES = (".py", ".yaml")


def versions() -> dict[str, str]:
    """Version by package, and of coldpress, which may be a working tree, its files' SHA-256."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if "coldpress" in found:
        found["coldpress source"] = _source_digest()
    return found


def _source_digest() -> str:
    total = hashlib.sha256()
    for name in COLDPRESS:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations, f"{name} is not installed"
        folder = Path(next(iter(spec.submodule_search_locations)))
        for file in sorted(folder.rglob("*")):
            if file.suffix in SOURCES:
                total.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return total.hexdigest()[:16]


if __name__ == "__main__":
    print(json.dumps(versions()))
