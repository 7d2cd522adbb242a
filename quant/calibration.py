"""Text for calibration: from a file, from the `datasets` library, or the model's own."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quant.extras import require
from quant.format.checkpoint import Checkpoint
from quant.format.errors import FileFormatError, InputError
from quant.recipe import CalibrationSpec

if TYPE_CHECKING:
    from quant.skeleton import Skeleton

_SUFFIXES = (".txt", ".md", ".json", ".jsonl", ".parquet")
_SURPLUS = 8
"""Reading stops when there is this many times the text that is needed."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class FileSource:
    """A text file (one document), JSONL with `text` or `messages`, or Parquet with `text`."""

    path: Path


@dataclass(frozen=True)
class DatasetSource:
    """A data set of the `datasets` library: NAME or NAME:CONFIG, split `train`, column `text`."""

    name: str


@dataclass(frozen=True)
class SelfSource:
    """Text sampled from the model itself, so that no data is needed."""


CalibrationSource = FileSource | DatasetSource | SelfSource


@dataclass(frozen=True)
class CalibrationSet:
    """tokens: int64 [samples, tokens], no padding. sha256: of their bytes, little-endian."""

    tokens: npt.NDArray[np.int64]
    source: str
    sha256: str


def parse_source(text: str) -> CalibrationSource:
    """ "self", a path, or else a data set's name. Raises InputError for a file that is missing."""
    if text == "self":
        return SelfSource()
    path = Path(text)
    if path.is_file():
        return FileSource(path)
    if path.is_dir():
        raise InputError(f"{text}: is a directory; give one text, JSONL or Parquet file")
    if path.suffix.lower() in _SUFFIXES or text.startswith((".", "/", "~")):
        raise InputError(f"{text}: calibration text not found; give a file, a data set or 'self'")
    return DatasetSource(text)


def gather(
    source: CalibrationSource,
    checkpoint: Checkpoint,
    skeleton: "Skeleton",
    spec: CalibrationSpec,
    on_progress: Progress | None = None,
) -> CalibrationSet:
    """`spec.samples` windows of `spec.tokens` tokens. Raises InputError when there is less text."""
    if isinstance(source, SelfSource):
        from quant.self_text import sample_text

        tokens = sample_text(checkpoint, skeleton, spec, on_progress)
        return _described(tokens, "self")
    tokenizer = load_tokenizer(checkpoint.directory)
    if isinstance(source, FileSource):
        name, documents = source.path.name, read_documents(source.path)
    else:
        name, documents = source.name, read_dataset(source.name)
    return _described(pack(documents, tokenizer, spec, name), name)


def _described(tokens: npt.NDArray[np.int64], source: str) -> CalibrationSet:
    digest = hashlib.sha256(np.ascontiguousarray(tokens, dtype="<i8").tobytes()).hexdigest()
    return CalibrationSet(tokens, source, digest)


def load_tokenizer(model: Path) -> Any:
    """The checkpoint's tokenizer, never with code of its own. Raises InputError."""
    transformers = require("transformers", "reading calibration text")
    try:
        return transformers.AutoTokenizer.from_pretrained(
            model, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{model}: its tokenizer cannot be read; calibration needs tokenizer.json"
        ) from error


def pack(
    documents: Iterator[str | list[dict[str, str]]],
    tokenizer: Any,
    spec: CalibrationSpec,
    name: str,
) -> npt.NDArray[np.int64]:
    """Documents end to end, cut into windows; `spec.seed` picks which, in their order.

    Each window begins with the beginning-of-sequence token where the tokenizer adds one, so that
    windows look to the model like texts of their own.
    """
    start = _start_tokens(tokenizer)
    room = spec.tokens - len(start)
    needed = spec.samples * room
    stream: list[int] = []
    for document in documents:
        if not isinstance(document, str):
            document = tokenizer.apply_chat_template(document, tokenize=False)
        stream += tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        if len(stream) >= _SURPLUS * needed:
            break
    windows = len(stream) // room
    if windows < spec.samples:
        raise InputError(
            f"{name}: holds {len(stream):,} tokens but {needed:,} are needed ({spec.samples} "
            f"samples of {spec.tokens}); give more text, or set calibration.samples lower"
        )
    chosen = np.random.default_rng(spec.seed).permutation(windows)[: spec.samples]
    content = np.array(stream[: windows * room], dtype=np.int64).reshape(windows, room)
    picked = content[np.sort(chosen)]
    head = np.broadcast_to(np.array(start, dtype=np.int64), (spec.samples, len(start)))
    return np.concatenate([head, picked], axis=1)


def _start_tokens(tokenizer: Any) -> list[int]:
    """[bos] where the tokenizer puts one before every text, else []."""
    bos = tokenizer.bos_token_id
    first = tokenizer("a", verbose=False)["input_ids"][:1]
    return [bos] if bos is not None and first == [bos] else []


def read_documents(path: Path) -> Iterator[str | list[dict[str, str]]]:
    """The texts of a file, by its suffix. Raises InputError or FileFormatError."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".json"):
        yield from _read_jsonl(path)
    elif suffix == ".parquet":
        yield from _read_parquet(path)
    else:
        try:
            yield path.read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise FileFormatError(path, f"is not UTF-8 text ({error.reason})") from error


def _read_jsonl(path: Path) -> Iterator[str | list[dict[str, str]]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise FileFormatError(path, f"line {number} is not JSON ({error})") from error
            text = row.get("text", row.get("messages")) if isinstance(row, dict) else None
            if not isinstance(text, str | list):
                raise FileFormatError(path, f"line {number} has neither 'text' nor 'messages'")
            yield text


def _read_parquet(path: Path) -> Iterator[str]:
    parquet: Any = require("pyarrow.parquet", "reading Parquet")
    arrow: Any = require("pyarrow", "reading Parquet")
    try:
        file = parquet.ParquetFile(path)
        if "text" not in file.schema_arrow.names:
            raise FileFormatError(path, f"has no column 'text', only {file.schema_arrow.names}")
        for batch in file.iter_batches(columns=["text"], batch_size=256):
            yield from (text for text in batch.column(0).to_pylist() if text)
    except (arrow.ArrowInvalid, OSError) as error:
        raise FileFormatError(path, f"is not a Parquet file that can be read ({error})") from error


def read_dataset(name: str) -> Iterator[str]:
    """Texts of a data set, streamed. Raises InputError when it cannot be had."""
    datasets: Any = require("datasets", "calibrating on a data set")
    repository, _, config = name.partition(":")
    try:
        rows = datasets.load_dataset(repository, config or None, split="train", streaming=True)
        for row in rows:
            if "text" not in row:
                raise InputError(f"{name}: has no column 'text', only {sorted(row)}")
            yield row["text"]
    except InputError:
        raise
    except Exception as error:  # the library raises whatever its many back ends raise
        raise InputError(
            f"{name}: is neither a file nor a data set that can be loaded here "
            f"({type(error).__name__}); offline, give a file or 'self'"
        ) from error
