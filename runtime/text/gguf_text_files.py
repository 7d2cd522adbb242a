"""The text side of a GGUF file as the files of a Hugging Face directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.text.gguf_tokenizer import GgufVocabulary
from runtime.text.tokenizer import Tokenizer, gguf_tokenizer

UNUSED = 5
_TEMPLATE = "tokenizer.chat_template"


def write_text_files(metadata: Mapping[str, Any], source: str, directory: Path) -> None:
    """tokenizer.json, tokenizer_config.json and generation_config.json into `directory`.

    metadata: every key of the header; `source` names its file in errors. Raises what
    `gguf_tokenizer` raises.
    """
    tokenizer = gguf_tokenizer(metadata, source)
    vocabulary = GgufVocabulary(metadata, source)
    _write(directory / "tokenizer.json", _without_padding(tokenizer, vocabulary))
    _write(directory / "tokenizer_config.json", _settings(tokenizer, metadata))
    _write(directory / "generation_config.json", _generation(tokenizer, vocabulary))


def _without_padding(tokenizer: Tokenizer, vocabulary: GgufVocabulary) -> dict[str, Any]:
    """Rows of the table without a token have names in a GGUF file, but are no tokens."""
    found: dict[str, Any] = json.loads(tokenizer.to_json())
    pairs = zip(vocabulary.tokens, vocabulary.types, strict=True)
    for index, (token, kind) in enumerate(pairs):
        if kind == UNUSED and token == f"[PAD{index}]":
            del found["model"]["vocab"][token]
    return found


def _settings(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **tokenizer.special_tokens,
        "clean_up_tokenization_spaces": False,
    }
    template, names = metadata.get(_TEMPLATE), metadata.get(f"{_TEMPLATE}s")
    if names is not None and len(names):
        named = {str(name): metadata.get(f"{_TEMPLATE}.{name}") for name in names}
        named = {"default": template} | named
        entries = named.items()
        template = [{"name": name, "template": t} for name, t in entries if isinstance(t, str)]
    return settings | ({"chat_template": template} if template else {})


def _generation(tokenizer: Tokenizer, vocabulary: GgufVocabulary) -> dict[str, Any]:
    """Tokens that begin, end and pad; of those that end an answer, the end of a text comes first,
    as readers that know one alone take that."""
    found: dict[str, Any] = {}
    if tokenizer.bos_id is not None:
        found["bos_token_id"] = tokenizer.bos_id
    endings = sorted(tokenizer.ending_ids, key=lambda id_: (id_ != tokenizer.eos_id, id_))
    if endings:
        found["eos_token_id"] = endings if len(endings) > 1 else endings[0]
    padding = vocabulary.token_id("padding")
    return found | ({} if padding is None else {"pad_token_id": padding})


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
