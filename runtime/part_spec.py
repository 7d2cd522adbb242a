"""What another process is told of a model that it runs a part of."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PartSpec:
    """Plain data. backend: "torch", on CPUs, or "cuda"."""

    path: Path
    backend: str
    num_pages: int
    page_size: int
