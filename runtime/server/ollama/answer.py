"""Ollama's answer objects; durations in nanoseconds."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from runtime.generation import Generation, TextDelta
from runtime.server.logprobs import chat_logprobs
from runtime.service import GenerationService


def created_at() -> str:
    """Now, as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class Answer:
    """The objects of one answer: one per token that has text, and one with the figures."""

    def __init__(
        self,
        service: GenerationService,
        generation: Generation,
        is_chat: bool,
        arrived: float,
        load_seconds: float,
    ) -> None:
        """`arrived`: the time.monotonic() of the request."""
        self._service = service
        self._generation = generation
        self._is_chat = is_chat
        self._arrived = arrived
        self._load_seconds = load_seconds

    def line(self, delta: TextDelta) -> dict[str, Any] | None:
        """The object of one delta of a stream; None for one that brings nothing."""
        is_last = delta.finish_reason is not None
        if not (delta.text or delta.logprobs or is_last):
            return None
        return self._object([delta], is_last)

    def whole(self, deltas: Sequence[TextDelta]) -> dict[str, Any]:
        """The one object of an answer that is not streamed."""
        return self._object(deltas, is_last=True)

    def _object(self, deltas: Sequence[TextDelta], is_last: bool) -> dict[str, Any]:
        text = "".join(delta.text for delta in deltas)
        content: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}}
            if self._is_chat
            else {"response": text}
        )
        head = {"model": self._service.model_name, "created_at": created_at()}
        answer: dict[str, Any] = {**head, **content, "done": is_last}
        if any(delta.logprobs for delta in deltas):
            answer["logprobs"] = self._logprobs(deltas)
        if is_last:
            answer |= {"done_reason": deltas[-1].finish_reason, **self._figures()}
        return answer

    def _logprobs(self, deltas: Sequence[TextDelta]) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = chat_logprobs(self._service.tokenizer, deltas)["content"]
        return entries

    def _figures(self) -> dict[str, int]:
        now, generation = time.monotonic(), self._generation
        first = now if generation.first_token is None else generation.first_token
        return {
            "total_duration": _nanoseconds(now - self._arrived),
            "load_duration": _nanoseconds(self._load_seconds),
            "prompt_eval_count": generation.num_prompt_tokens,
            "prompt_eval_duration": _nanoseconds(first - generation.started),
            "eval_count": generation.num_answer_tokens,
            "eval_duration": _nanoseconds(now - first),
        }


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
