"""Log probabilities in the shapes that OpenAI's routes and vLLM's extensions give them."""

from collections.abc import Sequence
from typing import Any

from runtime.engine.request import TokenLogprobs
from runtime.generation import TextDelta
from runtime.text.tokenizer import Tokenizer

_LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot write."""


def chat_logprobs(
    tokenizer: Tokenizer, deltas: Sequence[TextDelta], *, as_ids: bool = False
) -> dict[str, Any]:
    """One entry per token of the answer; the token that only ended it has none.

    as_ids: tokens are written as "token_id:5", which tells those apart that have the same text.
    """

    def entry(token_id: int, value: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token_id)
        name = _name(tokenizer, token_id, as_ids)
        return {"token": name, "logprob": max(value, _LOWEST), "bytes": list(data)}

    content = [
        {
            **entry(delta.token_id, delta.logprobs.chosen),
            "top_logprobs": [entry(id_, value) for id_, value in delta.logprobs.top],
        }
        for delta in deltas
        if delta.token_id is not None and delta.logprobs is not None
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(
    tokenizer: Tokenizer, prompt: Sequence[int], found: Sequence[TokenLogprobs]
) -> list[dict[str, Any] | None]:
    """vLLM's form: for each prompt token but the first, which has None, the probable tokens in its
    place and itself, by id. `rank` counts from 1 and is null for a token that is not among them."""
    return [None, *(_by_id(tokenizer, *each) for each in zip(prompt[1:], found, strict=True))]


def _by_id(tokenizer: Tokenizer, token_id: int, found: TokenLogprobs) -> dict[str, Any]:
    def entry(id_: int, value: float, rank: int | None) -> dict[str, Any]:
        name = _name(tokenizer, id_, False)
        return {"logprob": max(value, _LOWEST), "rank": rank, "decoded_token": name}

    entries = {str(id_): entry(id_, value, r) for r, (id_, value) in enumerate(found.top, 1)}
    entries.setdefault(str(token_id), entry(token_id, found.chosen, None))
    return entries


class CompletionLogprobs:
    """The four parallel lists of plain completions; `text_offset` counts on between calls."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._offset = 0
        self._clear()

    def add_prompt(self, prompt: Sequence[int], found: Sequence[TokenLogprobs]) -> None:
        """The next lists begin with the prompt; nothing is known of its first token."""
        for token_id, logprobs in zip(prompt, (None, *found), strict=True):
            self._add(token_id, logprobs)

    def of(self, deltas: Sequence[TextDelta]) -> dict[str, Any]:
        """The lists of these deltas, and of what was added before."""
        for delta in deltas:
            if delta.token_id is not None and delta.logprobs is not None:
                self._add(delta.token_id, delta.logprobs)
        lists = self._lists
        self._clear()
        return lists

    def _clear(self) -> None:
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        self._lists: dict[str, list[Any]] = {name: [] for name in names}

    def _add(self, token_id: int, logprobs: TokenLogprobs | None) -> None:
        lists = self._lists
        lists["tokens"].append(_name(self._tokenizer, token_id, self._as_ids))
        lists["text_offset"].append(self._offset)
        chosen = None if logprobs is None else max(logprobs.chosen, _LOWEST)
        lists["token_logprobs"].append(chosen)
        top = None if logprobs is None else self._alternatives(token_id, logprobs)
        lists["top_logprobs"].append(top)
        self._offset += len(_text(self._tokenizer.token_bytes(token_id)))

    def _alternatives(self, token_id: int, logprobs: TokenLogprobs) -> dict[str, float]:
        """By text; of tokens with the same text the most probable stands. The token itself is
        among them, as one more if need be."""
        found: dict[str, float] = {}
        for id_, value in (*logprobs.top, (token_id, logprobs.chosen)):
            found.setdefault(_name(self._tokenizer, id_, self._as_ids), max(value, _LOWEST))
        return found


def _name(tokenizer: Tokenizer, token_id: int, as_id: bool) -> str:
    return f"token_id:{token_id}" if as_id else _text(tokenizer.token_bytes(token_id))


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
