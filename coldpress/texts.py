"""Texts for calibration and evaluation."""

from pathlib import Path

from quant.format.errors import FileFormatError, InputError

GATE_CHARACTERS = 100_000


def read_text(path: Path) -> str:
    """The whole of a UTF-8 text file. Raises InputError for anything else."""
    if path.is_dir():
        raise InputError(f"{path} is a directory; give a text file")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give a text file") from None
    except UnicodeDecodeError as error:
        raise FileFormatError(path, f"not UTF-8 text (byte {error.start})") from None
    if not text.strip():
        raise FileFormatError(path, "the text is empty")
    return text


def builtin_text() -> str:
    """English prose that ships with every Python: its language reference, as `help()` shows it."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def text_for_gates(path: Path | None) -> str:
    """The user's text; a part of the built-in one, long enough for a gate, where there is none."""
    return read_text(path) if path is not None else builtin_text()[:GATE_CHARACTERS]
