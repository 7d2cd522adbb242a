"""What `quantize`, `build` and `plan` start from: a model, whatever file it came in."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from coldpress.loading import default_name
from quant.format.checkpoint import TEXT_FILES, Checkpoint
from quant.format.errors import InputError

if TYPE_CHECKING:
    from compile.model import Model


@dataclass(frozen=True)
class Source:
    """What lies at `path`. gguf: the same as a checkpoint, where it is a GGUF file."""

    path: Path
    gguf: Checkpoint | None = None

    @property
    def checkpoint(self) -> Path | Checkpoint:
        """What quantizing starts from."""
        return self.path if self.gguf is None else self.gguf

    @property
    def text_directory(self) -> Path:
        """Where the files of the text side lie."""
        return self.path if self.gguf is None else self.gguf.directory

    def model(self) -> "Model":
        """The model as its container holds it."""
        from compile.open_model import open_model

        model = open_model(self.path)
        return model if self.gguf is None else replace(model, directory=self.gguf.directory)

    def checkpoint_model(self) -> "Model":
        """The model as a Hugging Face checkpoint holds it."""
        from compile.open_model import checkpoint_model

        return self.model() if self.gguf is None else checkpoint_model(self.gguf)


@contextmanager
def opened_source(path: Path, *, text: bool = True) -> Iterator[Source]:
    """The model at `path`: a checkpoint or artifact, a GGUF file, a directory that holds one.

    For a GGUF file, config.json and, unless `text` is false, the files of the text side lie in a
    temporary directory until the block ends: those beside it if it has any, else made from its
    header. Its weights are read where they are. Raises InputError for a GGUF file that is missing,
    and what `gguf_checkpoint` raises.
    """
    from compile.open_model import gguf_payload

    if path.suffix == ".gguf" and not path.exists():
        raise InputError(f"{path}: no such file; download the model first")
    payload = gguf_payload(path)
    if payload is None:
        yield Source(path)
        return
    from compile.gguf_checkpoint import gguf_checkpoint

    with TemporaryDirectory(prefix="coldpress-") as folder:
        directory = Path(folder) / default_name(path)
        directory.mkdir()
        checkpoint = gguf_checkpoint(payload, directory)
        config = json.dumps(checkpoint.config, indent=2, ensure_ascii=False)
        (directory / "config.json").write_text(f"{config}\n", encoding="utf-8")
        if text:
            _place_text_files(path, payload, directory)
        yield Source(path, checkpoint)


def _place_text_files(path: Path, payload: Path, directory: Path) -> None:
    if path.is_dir() and (path / "tokenizer.json").is_file():
        for name in TEXT_FILES:
            if (path / name).is_file():
                shutil.copyfile(path / name, directory / name)
        return
    from quant.format.gguf_file import GgufFile
    from runtime.text.gguf_text_files import write_text_files

    write_text_files(GgufFile(payload).metadata, str(payload), directory)
