"""From the text of an answer to the fields of a chat message."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from runtime.engine.request import FinishReason
from runtime.generation import TextDelta
from runtime.service import GenerationService
from runtime.text.reasoning import OPEN, ReasoningSplitter, has_reasoning

_MARK_TOKENS = 16
"""More than a mark and the space after it take."""


class MessageReader(Protocol):
    """Of one choice: `feed` takes its deltas in order, and the last one has a finish_reason."""

    num_reasoning_tokens: int

    def feed(self, delta: TextDelta) -> dict[str, Any]:
        """What this delta adds to the message, as the `delta` of a chunk; each of its texts is to
        be appended to what came before."""
        ...

    def message(self) -> dict[str, Any]:
        """The fields of the whole message, once all deltas have come."""
        ...

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended, in OpenAI's words."""
        ...


class PlainReader:
    """All text is content."""

    def __init__(self) -> None:
        self.num_reasoning_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._texts: list[str] = []

    def feed(self, delta: TextDelta) -> dict[str, Any]:
        self._texts.append(delta.text)
        self.finish_reason = delta.finish_reason
        return {"content": delta.text}

    def message(self) -> dict[str, Any]:
        return {"content": "".join(self._texts)}


class ReasoningReader:
    """Thoughts are `reasoning_content`; the rest is what `rest` makes of it.

    inside: the prompt has opened the thoughts already.
    """

    def __init__(self, rest: MessageReader, *, inside: bool) -> None:
        self.num_reasoning_tokens = 0
        self._rest = rest
        self._splitter = ReasoningSplitter(inside=inside)
        self._thoughts: list[str] = []

    @property
    def finish_reason(self) -> str | None:
        return self._rest.finish_reason

    def feed(self, delta: TextDelta) -> dict[str, Any]:
        thoughts, text = self._splitter.feed(delta.text)
        if self._splitter.thinks:
            self.num_reasoning_tokens += 1
        if delta.finish_reason is not None:
            last, rest = self._splitter.finish()
            thoughts, text = thoughts + last, text + rest
        self._thoughts.append(thoughts)
        fields = self._rest.feed(replace(delta, text=text))
        if thoughts:
            if not fields.get("content", "x"):
                del fields["content"]
            fields["reasoning_content"] = thoughts
        return fields

    def message(self) -> dict[str, Any]:
        thoughts = "".join(self._thoughts)
        return {**self._rest.message(), **({"reasoning_content": thoughts} if thoughts else {})}


def reader_of(
    service: GenerationService,
    prompt: Sequence[int],
    reasoning_format: str | None,
    rest: MessageReader | None = None,
) -> MessageReader:
    """What tells the parts of an answer to `prompt` apart; `rest` reads what is no thought."""
    plain = rest or PlainReader()
    template = service.template
    if template is None or reasoning_format == "none" or not has_reasoning(template.source):
        return plain
    end = service.tokenizer.decode(prompt[-_MARK_TOKENS:], skip_special_tokens=False)
    return ReasoningReader(plain, inside=end.rstrip().endswith(OPEN))
