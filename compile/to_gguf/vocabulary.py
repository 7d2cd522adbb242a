"""tokenizer.json and its companions as GGUF's `tokenizer.*` keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compile.to_gguf.pretokenizer import APPROXIMATE, pretokenizer_name
from compile.to_gguf.sentencepiece import sentencepiece_keys
from quant.format.checkpoint import read_json_object
from quant.format.errors import FileFormatError, InputError, UnsupportedModelError
from quant.format.gguf_writer import TypedValue

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
Keys = dict[str, TypedValue]

SPECIAL = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",
    "pad_token": "padding",
    "mask_token": "mask",
}
"""Roles and their key names; llama.cpp spells "seperator" like that."""


def vocabulary_keys(
    directory: Path, config: Mapping[str, Any], vocab_size: int
) -> tuple[Keys, list[str]]:
    """(keys, notes): everything that llama.cpp needs to tokenize, in a fixed order.

    vocab_size: rows of the embedding table; ids without a token become unused ones. Raises
    InputError where files are missing, FileFormatError where they are malformed, and
    UnsupportedModelError where llama.cpp cannot tokenize in this way.
    """
    tokenizer = read_json(directory / "tokenizer.json", required=True)
    settings = read_json(directory / "tokenizer_config.json")
    try:
        tokens, types = _tokens(directory, tokenizer, vocab_size)
        keys, notes = _model_keys(tokenizer, tokens, types)
        keys |= _special_ids(directory, tokenizer, settings, config, tokens)
        keys |= _framing(tokenizer, settings)
        keys |= _chat_templates(directory, settings)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"is not, with tokenizer_config.json, a tokenizer that is known here ({error!r})"
        raise FileFormatError(directory / "tokenizer.json", problem) from error
    return keys, notes


def read_json(path: Path, required: bool = False) -> dict[str, Any]:
    """A JSON object, {} where an optional file is missing."""
    if path.is_file():
        return read_json_object(path)
    if required:
        problem = "the file is missing; a GGUF file needs it, so save the tokenizer with the model"
        raise InputError(f"{path}: {problem}")
    return {}


def _tokens(
    directory: Path, tokenizer: Mapping[str, Any], vocab_size: int
) -> tuple[list[str], list[int]]:
    """Every id's text and type: the model's vocabulary, then added tokens over it, then holes."""
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [UNUSED] * vocab_size
    placed = [(text, index, NORMAL) for text, index in tokenizer["model"]["vocab"].items()]
    for token in tokenizer.get("added_tokens") or ():
        kind = CONTROL if token["special"] else USER_DEFINED
        placed.append((token["content"], token["id"], kind))
    for text, index, kind in placed:
        if not 0 <= index < vocab_size:
            problem = f"gives token {text!r} the id {index}; the model has {vocab_size} rows"
            raise FileFormatError(directory / "tokenizer.json", problem)
        tokens[index], types[index] = text, kind
    seen: dict[str, int] = {}
    for index, text in enumerate(tokens):
        if seen.setdefault(text, index) != index:
            problem = f"has token {text!r} twice, as {seen[text]} and {index}"
            raise FileFormatError(directory / "tokenizer.json", problem)
    return tokens, types


def _model_keys(
    tokenizer: Mapping[str, Any], tokens: list[str], types: list[int]
) -> tuple[Keys, list[str]]:
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("dropout"):
        kind = model.get("type")
        raise UnsupportedModelError(f"tokenizer.json holds a {kind} model; only BPE is supported")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UnsupportedModelError("tokenizer.json marks parts of words, which GGUF cannot hold")
    notes = _matching_notes(tokenizer)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if model.get("byte_fallback"):
        keys = sentencepiece_keys(tokenizer, tokens, types, merges)
        return keys, notes
    notes += _normalizer_notes(tokenizer.get("normalizer"))
    name = pretokenizer_name(tokenizer)
    if name in APPROXIMATE:
        notes.append(APPROXIMATE[name])
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": merges,
    }, notes


def _normalizer_notes(normalizer: Any) -> list[str]:
    if normalizer is None or normalizer == {"type": "Sequence", "normalizers": []}:
        return []
    if normalizer == {"type": "NFC"}:
        return [
            "the tokenizer normalizes text to NFC and llama.cpp does not: "
            "text that is not in NFC gets other tokens there"
        ]
    raise UnsupportedModelError(f"tokenizer.json has the normalizer {normalizer}, unknown to GGUF")


def _matching_notes(tokenizer: Mapping[str, Any]) -> list[str]:
    """Added tokens that swallow spaces or need word boundaries do neither in llama.cpp."""
    flags = ("lstrip", "rstrip", "single_word")
    added = tokenizer.get("added_tokens") or ()
    names = [t["content"] for t in added if any(t.get(flag) for flag in flags)]
    if not names:
        return []
    return [f"llama.cpp ignores the space rules of {len(names)} added tokens, such as {names[0]!r}"]


def _special_ids(
    directory: Path,
    tokenizer: Mapping[str, Any],
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    tokens: list[str],
) -> Keys:
    ids = {text: index for index, text in enumerate(tokens)}
    keys: Keys = {}
    for role, key in SPECIAL.items():
        text = settings.get(role)
        text = text.get("content") if isinstance(text, Mapping) else text
        fallback = config.get(f"{role}_id")
        index = ids.get(text) if isinstance(text, str) else fallback
        index = index[0] if isinstance(index, list) and index else index
        if type(index) is int and 0 <= index < len(tokens):
            keys[f"tokenizer.ggml.{key}_token_id"] = np.uint32(index)
    generation = read_json(directory / "generation_config.json")
    stops = generation.get("eos_token_id", config.get("eos_token_id"))
    stops = stops if isinstance(stops, list) else [stops]
    main = keys.get("tokenizer.ggml.eos_token_id")
    more = [stop for stop in stops if type(stop) is int and stop != main and stop < len(tokens)]
    # GGUF has two more keys for tokens that end an answer; their names do not bind their use.
    for key, stop in zip(("eot", "eom"), more, strict=False):
        keys[f"tokenizer.ggml.{key}_token_id"] = np.uint32(stop)
    return keys


def _framing(tokenizer: Mapping[str, Any], settings: Mapping[str, Any]) -> Keys:
    """Whether text gets a bos and an eos: the post-processor decides, as in transformers."""
    processor: Any = tokenizer.get("post_processor")
    steps: list[Any] = processor["processors"] if _is(processor, "Sequence") else [processor]
    for step in steps:
        if _is(step, "TemplateProcessing"):
            kinds = ["SpecialToken" in part for part in step["single"]]
            return _flags(kinds[0], kinds[-1])
    return _flags(bool(settings.get("add_bos_token")), bool(settings.get("add_eos_token")))


def _flags(bos: bool, eos: bool) -> Keys:
    return {"tokenizer.ggml.add_bos_token": bos, "tokenizer.ggml.add_eos_token": eos}


def _is(step: Any, kind: str) -> bool:
    return isinstance(step, Mapping) and step.get("type") == kind


def _chat_templates(directory: Path, settings: Mapping[str, Any]) -> Keys:
    """A file wins over tokenizer_config.json, as in transformers; further ones keep their names."""
    given = settings.get("chat_template")
    named: dict[str, str] = {}
    if isinstance(given, str):
        named["default"] = given
    elif isinstance(given, list):
        named = {entry["name"]: entry["template"] for entry in given}
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        named[path.stem] = path.read_text(encoding="utf-8")
    alone = directory / "chat_template.jinja"
    if alone.is_file():
        named["default"] = alone.read_text(encoding="utf-8")
    keys: Keys = {}
    if "default" in named:
        keys["tokenizer.chat_template"] = named.pop("default")
    if named:
        keys["tokenizer.chat_templates"] = sorted(named)
        keys |= {f"tokenizer.chat_template.{name}": named[name] for name in sorted(named)}
    return keys
