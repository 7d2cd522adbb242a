"""A model's chat template: messages in, prompt text out.

Templates are programs that come with a model. They run in a confined process (`rendering`), in
jinja2's immutable sandbox, and are held to a budget of output, loop steps, memory and seconds.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from compile.model import Model
from quant.format.errors import FileFormatError
from runtime.confined.messages import Refused
from runtime.confined.pool import Busy, ConfinedPool, Overrun
from runtime.engine.request import RequestError
from runtime.text.tokenizer import read_json, special_tokens_of

MAX_TEMPLATE_CHARACTERS = 1024 * 1024
_TEXT_PART_TYPES = ("text", "input_text")


@cache
def render_pool() -> ConfinedPool:
    """The processes that render; `render_pool().start()` has one ready when it is needed."""
    return ConfinedPool("runtime.text.rendering", size=2)


class ChatTemplate:
    """One template. Rendering is what transformers' apply_chat_template renders."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str] | None = None, name: str = "template"
    ) -> None:
        """`special_tokens` by role, `bos_token` for example. Raises FileFormatError naming `name`
        for a template that does not parse."""
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise FileFormatError(name, f"the chat template is {len(source)} characters long")
        try:
            self._key: str = render_pool().call("parse", source)
        except (Refused, Overrun) as error:
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
            text = self._render(context)
            return _until_end_of(messages[-1], text) if continue_final else text
        except (Refused, Overrun) as error:
            raise RequestError(
                f"the chat template refuses these messages: {error}", "messages"
            ) from error
        except Busy as error:
            raise RequestError(str(error), code="queue_full") from error

    def _render(self, context: Mapping[str, Any]) -> str:
        pool = render_pool()
        try:
            return str(pool.call("render", self._key, context))
        except Refused as refusal:
            if refusal.kind != "unknown":
                raise
        return str(pool.call("render_source", self.source, context))


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
