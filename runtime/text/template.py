"""A model's chat template: messages in, prompt text out.

Templates are programs that come with a model. They run in jinja2's immutable sandbox, see no
files, and are held to a budget of output, loop steps and seconds.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError

from compile.model import Model
from quant.format.errors import FileFormatError
from runtime.engine.request import RequestError
from runtime.text.sandbox import MAX_STEPS, TemplateEnvironment, steps_left
from runtime.text.tokenizer import read_json, special_tokens_of

MAX_OUTPUT_CHARACTERS = 16 * 1024 * 1024
MAX_SECONDS = 2.0
_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
_TEXT_PART_TYPES = ("text", "input_text")


class ChatTemplate:
    """One template, compiled. Rendering is what transformers' apply_chat_template renders."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str] | None = None, name: str = "template"
    ) -> None:
        """`special_tokens` by role, `bos_token` for example. Raises FileFormatError naming `name`
        for a template that does not parse."""
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        try:
            self._template = TemplateEnvironment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise FileFormatError(name, f"the chat template does not parse: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for `messages`; content is text, or a list of text parts. `variables` are the
        template's own, `enable_thinking` for example.

        continue_final: the prompt ends with the last message's text, for the model to go on from.

        Raises RequestError where a part is not text, or the template refuses the messages.
        """
        context = {
            **self._special_tokens,
            **(variables or {}),
            "messages": [_plain(message) for message in messages],
            "add_generation_prompt": add_generation_prompt and not continue_final,
        }
        try:
            text = _bounded(self._template.generate(context))
            return _until_end_of(messages[-1], text) if continue_final else text
        except RequestError:
            raise
        except _TEMPLATE_FAULTS as error:
            reason = str(error)[:300] or type(error).__name__
            raise RequestError(
                f"the chat template refuses these messages: {reason}", "messages"
            ) from error


def load_template(model: Model) -> ChatTemplate | None:
    """The chat template of a model, or None if it has none.

    In order: chat_template.jinja, tokenizer_config.json, the GGUF key tokenizer.chat_template.
    """
    if model.directory is not None:
        directory = model.directory
        config = read_json(directory / "tokenizer_config.json")
        tokens = special_tokens_of(read_json(directory / "special_tokens_map.json"))
        tokens |= special_tokens_of(config)
        path = directory / "chat_template.jinja"
        if path.is_file():
            return ChatTemplate(_read_text(path), tokens, str(path))
        source = _default_of(config.get("chat_template"))
        if source is not None:
            return ChatTemplate(source, tokens, str(directory / "tokenizer_config.json"))
    metadata = model.gguf_metadata or {}
    source = metadata.get("tokenizer.chat_template")
    if not isinstance(source, str):
        return None
    return ChatTemplate(source, _gguf_special_tokens(metadata), str(model.path))


def content_text(content: object, where: str = "messages") -> str:
    """Text of a message's content. Parts are joined by line ends, as vLLM joins them.

    Raises RequestError for a part that is not text; nothing is ever fetched.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where}.content must be a string or a list of text parts", where)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind not in _TEXT_PART_TYPES or not isinstance(text, str):
            raise RequestError(
                f"{where}.content holds a part of type '{str(kind)[:40]}'; "
                f"only text parts are supported",
                where,
            )
        texts.append(text)
    return "\n".join(texts)


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": None if content is None else content_text(content)}


def _until_end_of(message: Mapping[str, Any], rendered: str) -> str:
    """What comes before the marks that end the last message; templates may strip its text."""
    content = content_text(message.get("content"))
    for text in (content.lstrip(), content.strip()):
        place = rendered.rfind(text)
        if text and place >= 0:
            return rendered[: place + len(text)]
    raise RequestError(
        "continue_final_message needs a last message whose text the chat template shows",
        "continue_final_message",
    )


def _bounded(chunks: Iterator[str]) -> str:
    steps_left.set(MAX_STEPS)
    deadline = time.monotonic() + MAX_SECONDS
    parts, size = [], 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > MAX_OUTPUT_CHARACTERS:
            raise SecurityError(f"its output is longer than {MAX_OUTPUT_CHARACTERS} characters")
        if time.monotonic() > deadline:
            raise SecurityError(f"it runs for more than {MAX_SECONDS:g} s")
    return "".join(parts)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(path, f"is not UTF-8: {error.reason}") from error


def _default_of(value: object) -> str | None:
    """A chat_template entry: the template, or a list of named ones with one called default."""
    if isinstance(value, list):
        named = {e.get("name"): e.get("template") for e in value if isinstance(e, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _gguf_special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found = {}
    for role, key in roles.items():
        id_ = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if id_ is not None and 0 <= int(id_) < len(tokens):
            found[f"{role}_token"] = str(tokens[int(id_)])
    return found
