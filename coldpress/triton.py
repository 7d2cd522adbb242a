"""Exports a finished artifact as a model repository for NVIDIA Triton."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from compile.manifest import describe_source, write_manifest

Progress = Callable[[int, int, str], None]


def fill_repository(
    artifact: Path, directory: Path, name: str, on_progress: Progress | None
) -> dict[str, Any]:
    """Write the repository into `directory`, its manifest too; returns what was made."""
    from compile.open_model import open_model
    from compile.to_triton.repository import write_repository

    names = write_repository(open_model(artifact), directory, name, on_progress)
    manifest = write_manifest(directory, "triton", parents=[describe_source(artifact)])
    return {
        "models": names,
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "files": len(manifest.files),
        "notes": ["no Triton server has run this repository yet"],
    }
