"""A SentencePiece-style tokenizer.json (BPE with byte fallback and U+2581 for spaces) for GGUF.

llama.cpp merges whichever neighbours form the piece of the highest score; tokenizer.json lists the
pairs in order. The two agree when a piece's score falls with the rank of the pair that makes it,
and when every way to cut a piece into two known ones is in the list.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.format.errors import UnsupportedModelError
from quant.format.gguf_writer import TypedValue

NORMAL, UNKNOWN, USER_DEFINED, BYTE = 1, 2, 4, 6
SPACE = "▁"
ADDED_SCORE = -1000.0


def sentencepiece_keys(
    tokenizer: Mapping[str, Any], tokens: list[str], types: list[int], merges: list[str]
) -> dict[str, TypedValue]:
    """Keys of the `llama` tokenizer model. Raises UnsupportedModelError where it would differ."""
    kinds = list(types)
    unknown = tokenizer["model"].get("unk_token")
    texts = list(tokens)
    for index, token in enumerate(tokens):
        if re.fullmatch("<0x[0-9A-F]{2}>", token) and types[index] == NORMAL:
            kinds[index] = BYTE
        elif token == unknown:
            kinds[index] = UNKNOWN
        elif types[index] == USER_DEFINED:
            texts[index] = token.replace(SPACE, " ")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": _scores(tokens, kinds, merges),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.add_space_prefix": _adds_space(tokenizer),
    }


def _scores(tokens: list[str], kinds: list[int], merges: list[str]) -> npt.NDArray[np.float32]:
    """Minus the rank of the first pair that makes a piece; single characters come after all."""
    rank: dict[str, int] = {}
    listed = set()
    for pair in merges:
        left, _, right = pair.partition(" ")
        listed.add((left, right))
        rank.setdefault(left + right, len(rank))
    _check_cuts(tokens, kinds, listed)
    scores = np.full(len(tokens), ADDED_SCORE, np.float32)
    for index, token in enumerate(tokens):
        if kinds[index] == NORMAL:
            scores[index] = -rank.get(token, len(rank))
        elif kinds[index] not in (USER_DEFINED,):
            scores[index] = 0.0
    return scores


def _check_cuts(tokens: list[str], kinds: list[int], listed: set[tuple[str, str]]) -> None:
    known = {token for token, kind in zip(tokens, kinds, strict=True) if kind == NORMAL}
    for token in known:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in known and right in known and (left, right) not in listed:
                raise UnsupportedModelError(
                    f"tokenizer.json never merges {left!r} and {right!r}, but llama.cpp would, "
                    "as both and their union are tokens: its text would be split differently"
                )


def _adds_space(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a space is put before text; refuses any other treatment of text than that."""
    steps = [tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")]
    flat: list[Mapping[str, Any]] = []
    for step in steps:
        parts = step.get("normalizers", [step]) if step else []
        flat += [part for part in parts if part is not None]
    adds = replaced = False
    for part in flat:
        if part["type"] == "Prepend" and part["prepend"] == SPACE:
            adds = True
        elif part["type"] == "Metaspace" and part["replacement"] == SPACE and not part.get("split"):
            adds = part.get("prepend_scheme", "always") != "never"
        elif part == _REPLACE_SPACE:
            replaced = True
        elif not (replaced and _splits_at_spaces(part)):
            raise UnsupportedModelError(f"tokenizer.json has the step {part}, unknown to GGUF")
    return adds


def _splits_at_spaces(part: Mapping[str, Any]) -> bool:
    """Gemma's, of which none are left: they have been replaced."""
    return bool(part["type"] == "Split" and part["pattern"] == {"String": " "})


_REPLACE_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
