"""One text, cut into what tools calibrate on and what they are scored on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sizes:
    """Calibration: samples x tokens. Scored: windows x window tokens."""

    samples: int = 128
    tokens: int = 512
    windows: int = 40
    window: int = 1024


@dataclass(frozen=True)
class Material:
    """calibration: int64 [samples, tokens]. text: gives exactly these tokens when it is cut into
    samples. scored: int64 [windows, window]."""

    calibration: Int64
    text: str
    scored: Int64


def prepare(text: str, tokenizer: Any, sizes: Sizes) -> Material:
    """Calibration from the first half of `text`, scored windows from the second.

    Raises ValueError when a half is too short.
    """
    half = len(text) // 2
    start = start_tokens(tokenizer)
    room = sizes.tokens - len(start)
    cut = cut_text(text[:half], tokenizer, sizes.samples * room, room)
    ids = encode(tokenizer, cut)
    return Material(
        into_windows(ids, start, sizes.samples, sizes.tokens),
        cut,
        into_windows(encode(tokenizer, text[half:]), start, sizes.windows, sizes.window),
    )


def start_tokens(tokenizer: Any) -> list[int]:
    """[bos] where the tokenizer puts one before every text, else []."""
    first = tokenizer("a")["input_ids"][:1]
    return first if first and first[0] == tokenizer.bos_token_id else []


def encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def into_windows(ids: list[int], start: list[int], count: int, length: int) -> Int64:
    """Int64 [count, length]: the first tokens of `ids`, each window after the start tokens."""
    room = length - len(start)
    if len(ids) < count * room:
        raise ValueError(
            f"half of the text has {len(ids):,} tokens, {count} windows of {length} need more"
        )
    rows = np.array(ids[: count * room], dtype=np.int64).reshape(count, room)
    head = np.broadcast_to(np.array(start, dtype=np.int64), (count, len(start)))
    return np.concatenate([head, rows], axis=1)


def cut_text(text: str, tokenizer: Any, needed: int, room: int) -> str:
    """The start of `text` that has its first `needed` tokens, and less than `room` more.

    A reader that packs it into samples of `room` tokens then has no choice which to take. A few
    tokens are left over, since a cut in the middle of a word changes the word's last tokens.
    """
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = whole["input_ids"], whole["offset_mapping"]
    for extra in range(1, min(room, len(ids) - needed)):
        cut = text[: offsets[needed + extra][0]]
        again = encode(tokenizer, cut)
        if again[:needed] == ids[:needed] and len(again) < needed + room:
            return cut
    raise ValueError(
        f"no start of the text has exactly {needed:,} tokens and a few; give more text"
    )
