"""Log probabilities in the two shapes that OpenAI's routes give them."""

from collections.abc import Sequence
from typing import Any

from runtime.generation import TextDelta
from runtime.text.tokenizer import Tokenizer

_LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot write."""


def chat_logprobs(tokenizer: Tokenizer, deltas: Sequence[TextDelta]) -> dict[str, Any]:
    """One entry per token of the answer; the token that only ended it has none."""
    content = [
        {
            **_entry(tokenizer, delta.token_id, delta.logprobs.chosen),
            "top_logprobs": [_entry(tokenizer, id_, value) for id_, value in delta.logprobs.top],
        }
        for delta in deltas
        if delta.token_id is not None and delta.logprobs is not None
    ]
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """The four parallel lists of plain completions; `text_offset` counts on between calls."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offset = 0

    def of(self, deltas: Sequence[TextDelta]) -> dict[str, Any]:
        tokens, values, offsets = [], [], []
        top: list[dict[str, float]] = []
        for delta in deltas:
            if delta.token_id is None or delta.logprobs is None:
                continue
            text = _text(self._tokenizer.token_bytes(delta.token_id))
            tokens.append(text)
            values.append(max(delta.logprobs.chosen, _LOWEST))
            offsets.append(self._offset)
            top.append(self._alternatives(delta))
            self._offset += len(text)
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": top,
            "text_offset": offsets,
        }

    def _alternatives(self, delta: TextDelta) -> dict[str, float]:
        """By text; of tokens with the same text the most probable stands."""
        found: dict[str, float] = {}
        for id_, value in delta.logprobs.top if delta.logprobs else ():
            found.setdefault(_text(self._tokenizer.token_bytes(id_)), max(value, _LOWEST))
        return found


def _entry(tokenizer: Tokenizer, token_id: int, value: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    return {"token": _text(data), "logprob": max(value, _LOWEST), "bytes": list(data)}


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
