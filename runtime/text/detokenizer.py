"""Token ids to text, one at a time, never splitting a character."""

import codecs
from typing import Protocol


class TokenTexts(Protocol):
    """What a Detokenizer needs of a tokenizer."""

    special_ids: frozenset[int]

    @property
    def strips_first_space(self) -> bool: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class Detokenizer:
    """Feeds on token ids and gives back the text that each one completes.

    Bytes of an unfinished character are held until it is complete or can no longer be; what is no
    UTF-8 becomes U+FFFD. All that `feed` and `finish` gave, joined, is the text of all ids fed.
    `continues`: the text goes on from a prompt, so its first space is its own.
    """

    def __init__(
        self, tokenizer: TokenTexts, *, skip_special_tokens: bool = True, continues: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._strip = tokenizer.strips_first_space and not continues
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """The text that this token completes, empty for a part of a character or a special."""
        if self._skip and token_id in self._tokenizer.special_ids:
            return ""
        data = self._tokenizer.token_bytes(token_id)
        if self._strip and data:
            self._strip = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What an unfinished character leaves: U+FFFD or nothing."""
        return self._decoder.decode(b"", final=True)
