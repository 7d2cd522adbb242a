"""Text to token ids and back, whatever container the model came in."""

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from compile.model import Model
from quant.format.errors import FileFormatError, InputError
from runtime.engine.request import RequestError
from runtime.machine import give_back_freed
from runtime.text.detokenizer import Detokenizer
from runtime.text.gguf_tokenizer import CONTROL, GgufVocabulary, build_tokenizer
from runtime.text.pieces import Pieces

_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>")
_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>")


class Tokenizer:
    """Encodes and decodes; knows which tokens are special and which end an answer.

    Safe to share between threads. Encoding releases the interpreter lock.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        ending_ids: Iterable[int] = (),
    ) -> None:
        """`special_tokens`: texts by role (`bos_token`, `eos_token`, ...), as templates use them.

        Raises UnsupportedModelError for a decoder whose tokens have no bytes of their own.
        """
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._verbatim: tokenizers.Tokenizer | None = None
        self._pieces = Pieces(backend, source)
        self._bytes: dict[int, bytes] = {}
        self.special_tokens = dict(special_tokens or {})
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        self.bos_id = self.id_of(self.special_tokens.get("bos_token"))
        self.eos_id = self.id_of(self.special_tokens.get("eos_token"))
        own = () if self.eos_id is None else (self.eos_id,)
        self.ending_ids = frozenset((*own, *ending_ids))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; the model's table may have more rows."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def strips_first_space(self) -> bool:
        return self._pieces.strips_space

    def id_of(self, token: str | None) -> int | None:
        return None if token is None else self._backend.token_to_id(token)

    def token_of(self, token_id: int) -> str:
        """The vocabulary's own spelling of a token; empty outside the vocabulary."""
        return self._backend.id_to_token(token_id) or ""

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of `text`.

        add_special_tokens: put the tokens around it that the model expects of a whole text.
        parse_special: the text of a special token means that token, else it is plain text.
        Raises RequestError for text that has no UTF-8.
        """
        backend = self._backend if parse_special else self._verbatim_backend()
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"the text is not valid Unicode: {error.reason}") from error
        # A batch of one: encode() keeps the interpreter lock, encode_batch_fast() does not.
        (encoding,) = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of a whole sequence; bytes that are no UTF-8 become U+FFFD."""
        stream = Detokenizer(self, skip_special_tokens=skip_special_tokens, continues=False)
        return "".join([*(stream.feed(id_) for id_ in ids), stream.finish()])

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of one token, possibly part of a character; empty outside the vocabulary."""
        known = self._bytes.get(token_id)
        if known is None:
            token = self._backend.id_to_token(token_id)
            known = self._bytes[token_id] = b"" if token is None else self._pieces.bytes_of(token)
        return known

    def least_tokens(self, text: str) -> int:
        """A lower bound on the tokens of `text`, found without encoding it.

        Unicode normalization joins at most four characters, which only then meet the vocabulary.
        """
        return len(text) // (4 * self._longest_token)

    @cached_property
    def _longest_token(self) -> int:
        longest = max(map(len, self._backend.get_vocab(with_added_tokens=True)))
        give_back_freed()
        return longest

    def to_json(self) -> str:
        """The text of a tokenizer.json that does the same."""
        return str(self._backend.to_str())

    def _verbatim_backend(self) -> tokenizers.Tokenizer:
        if self._verbatim is None:
            copy = tokenizers.Tokenizer.from_str(self._backend.to_str())
            copy.encode_special_tokens = True
            self._verbatim = copy
            give_back_freed()
        return self._verbatim


def load_tokenizer(model: Model) -> Tokenizer:
    """The tokenizer of a model: `tokenizer.json` of its directory, or the keys of its GGUF header.

    Raises InputError where there is neither, FileFormatError where it is corrupt,
    UnsupportedModelError for a kind that is not known.
    """
    if model.directory is not None and (model.directory / "tokenizer.json").is_file():
        return _from_directory(model, model.directory)
    if model.gguf_metadata is not None:
        return gguf_tokenizer(model.gguf_metadata, str(model.path))
    raise InputError(
        f"{model.path}: there is no tokenizer.json; write one with "
        f"AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIRECTORY)"
    )


def _from_directory(model: Model, directory: Path) -> Tokenizer:
    path = directory / "tokenizer.json"
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise FileFormatError(path, f"is not a tokenizer: {error}") from error
    named = special_tokens_of(read_json(directory / "special_tokens_map.json"))
    named |= special_tokens_of(read_json(directory / "tokenizer_config.json"))
    for role in ("bos", "eos"):
        ids = _ids(model.config.get(f"{role}_token_id"))
        token = backend.id_to_token(ids[0]) if ids else None
        if token is not None:
            named.setdefault(f"{role}_token", token)
    generation = read_json(directory / "generation_config.json")
    endings = _ids(generation.get("eos_token_id")) or _ids(model.config.get("eos_token_id"))
    return Tokenizer(backend, source=str(path), special_tokens=named, ending_ids=endings)


def gguf_tokenizer(metadata: Mapping[str, Any], source: str) -> Tokenizer:
    """The tokenizer of a GGUF header; `source` names the file in errors. Raises FileFormatError
    where its keys contradict each other, UnsupportedModelError for a kind that is not known."""
    backend = build_tokenizer(metadata, source)
    vocabulary = GgufVocabulary(metadata, source)
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    named = {
        f"{role}_token": vocabulary.tokens[id_]
        for role, key in roles.items()
        if (id_ := vocabulary.token_id(key)) is not None
    }
    endings = [vocabulary.token_id(role) for role in ("eot", "eom")]
    # Files without an eot id still end a turn with these, and llama.cpp stops at them too.
    endings += [
        id_
        for token in (*_END_OF_TURN, *_END_OF_TEXT)
        if (id_ := vocabulary.ids.get(token)) is not None and vocabulary.types[id_] == CONTROL
    ]
    known = [id_ for id_ in endings if id_ is not None]
    return Tokenizer(backend, source=source, special_tokens=named, ending_ids=known)


def special_tokens_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The `*_token` entries of a tokenizer configuration, written as text or as an object."""
    named = {}
    for key, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            named[key] = content
    return named


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is absent. Raises FileFormatError for anything else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(path, f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FileFormatError(path, "is not a JSON object")
    return value


def _ids(value: object) -> list[int]:
    if isinstance(value, int):
        return [value]
    return [id_ for id_ in value if isinstance(id_, int)] if isinstance(value, list) else []
