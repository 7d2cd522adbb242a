"""The bytes that each token stands for, so that text can be decoded one token at a time.

Decoders of tokenizer.json work on whole token lists. Those of decoder-only models are all of one of
two kinds, and in both a token's bytes depend on nothing but the token: byte-level BPE writes every
byte as a printable letter; SentencePiece writes a space as U+2581 and a lone byte as <0xHH>.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from quant.format.errors import UnsupportedModelError

_LONE_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _letters_to_bytes() -> dict[str, int]:
    """GPT-2's table: bytes that print as themselves, the other bytes as letters from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    letters = {chr(byte): byte for byte in plain}
    return letters | {chr(0x100 + index): byte for index, byte in enumerate(others)}


BYTE_OF_LETTER = _letters_to_bytes()


class Pieces:
    """`bytes_of(token)` for one tokenizer; `strips_space`: a text never begins with the one space
    that the tokenizer put before it."""

    def __init__(self, backend: Tokenizer, source: str) -> None:
        steps = _decoder_steps(backend)
        kinds = {str(step.get("type")) for step in steps}
        self.byte_level = "ByteLevel" in kinds
        self.byte_fallback = "ByteFallback" in kinds
        self.space = "▁"
        known = {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
        if not steps or not kinds <= known or (self.byte_level and len(kinds) > 1):
            raise UnsupportedModelError(
                f"{source}: the decoder {sorted(kinds)} is not one of the two kinds known here "
                f"(ByteLevel, or SentencePiece's Replace and ByteFallback)"
            )
        self.strips_space = any(_strips_first_space(step) for step in steps)

    def bytes_of(self, token: str) -> bytes:
        """UTF-8 of one token of the vocabulary; possibly a part of a character."""
        if self.byte_level:
            letters = [BYTE_OF_LETTER.get(letter) for letter in token]
            if any(byte is None for byte in letters):
                return token.encode()
            return bytes(byte for byte in letters if byte is not None)
        if self.byte_fallback and (lone := _LONE_BYTE.fullmatch(token)):
            return bytes([int(lone[1], 16)])
        return token.replace(self.space, " ").encode()


def _decoder_steps(backend: Tokenizer) -> list[Mapping[str, Any]]:
    if backend.decoder is None:
        return []
    state = json.loads(backend.decoder.__getstate__())
    return list(state["decoders"]) if state["type"] == "Sequence" else [state]


def _strips_first_space(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Strip":
        return bool(step.get("content") == " " and step.get("start"))
    return bool(step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
