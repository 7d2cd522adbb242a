"""Opens an artifact for the commands: the model, its tokenizer, an executor that runs it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compile.model import Model
    from runtime.engine.batch import Executor
    from runtime.text.tokenizer import Tokenizer

PAGE_SIZE = 16


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_artifact(path: Path) -> "tuple[Model, Tokenizer]":
    """The model and its tokenizer; reads headers only."""
    from compile.open_model import open_model
    from runtime.text.tokenizer import load_tokenizer

    model = open_model(path)
    return model, load_tokenizer(model)


def open_executor(
    model: "Model",
    *,
    backend: str = "cpu",
    tokens: int,
    sequences: int = 1,
    threads: int | None = None,
) -> "Executor":
    """An executor whose pool holds `sequences` sequences of `tokens` positions each."""
    from runtime.loading import load_executor

    pages = -(-tokens // PAGE_SIZE) * sequences + 1
    return load_executor(
        model, backend=backend, num_pages=pages, page_size=PAGE_SIZE, threads=threads
    )


def payload_bytes(path: Path) -> int:
    """Bytes of the files that hold weights: the GGUF file, or every safetensors shard."""
    if path.is_file():
        return path.stat().st_size
    found = [*path.glob("*.gguf")] or [*path.glob("*.safetensors")]
    return sum(file.stat().st_size for file in found)
