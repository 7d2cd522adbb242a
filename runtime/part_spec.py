"""What another process is told of a model that it runs a part of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.kv_cache import KvCacheType


@dataclass(frozen=True)
class PartSpec:
    """Plain data. backend: "torch", on CPUs, or "cuda". cache: what keys and values are held in;
    None is the backend's own, or what the checkpoint holds scales for. exact: nothing is rounded
    that the model does not round. device: "cpu" runs the cuda backend in Triton's interpreter."""

    path: Path
    backend: str
    num_pages: int
    page_size: int
    cache: KvCacheType | None = None
    exact: bool = False
    device: Literal["cuda", "cpu"] = "cuda"
