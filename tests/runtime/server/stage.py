"""A server whose model says what a test tells it, and a function that it may call."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from runtime.engine.batch import StepBatch
from tests.runtime.server.harness import Running, ScriptedExecutor, running, tiny_tokenizer

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "What it is like outside.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"$ref": "#/$defs/days"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
        },
    },
}
MESSAGES: list[Any] = [{"role": "user", "content": "Rain?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


class Saying(ScriptedExecutor):
    """Says `text` after any prompt of `num_prompt_tokens`, then ends."""

    def __init__(self) -> None:
        super().__init__(max_positions=2000, num_pages=600)
        self.first = 0
        self.words: list[int] = []

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        rows = len(batch.logit_rows)
        logits: npt.NDArray[np.float32] = np.zeros((rows, self.vocab_size), np.float32)
        (end,) = list(tiny_tokenizer().ending_ids)[:1]
        for row, token in enumerate(batch.logit_rows):
            place = int(batch.positions[token]) - self.first
            logits[row, self.words[place] if place < len(self.words) else end] = 20.0
        return logits


class Stage:
    """A server, and what its model will say next."""

    def __init__(self, server: Running, model: Saying) -> None:
        self.server = server
        self._model = model
        self.client = server.client()

    def say(self, text: str, **fields: Any) -> None:
        """The prompt's length is asked of the server, as the answers' places depend on it."""
        self._model.first, self._model.words = -10_000, [5] * 20_000
        body = {"messages": MESSAGES, "max_tokens": 1, **fields}
        answer = httpx.post(f"{self.server.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        self._model.first = answer.json()["usage"]["prompt_tokens"] - 1
        self._model.words = tiny_tokenizer().encode(text)


@contextmanager
def staged() -> Iterator[Stage]:
    model = Saying()
    with running(model) as server:
        one = Stage(server, model)
        yield one
        one.client.close()
