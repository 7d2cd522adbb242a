"""GGUF tokenizer keys of the tiny tokenizer, and of a small SentencePiece vocabulary."""

import json
from pathlib import Path
from typing import Any

from compile.model import Model
from tests.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS, tiny_model, tokenizer_json


def byte_level_keys() -> dict[str, Any]:
    """What a converter writes for tests.tiny's tokenizer."""
    model = json.loads(tokenizer_json())["model"]
    tokens = sorted(model["vocab"], key=lambda token: int(model["vocab"][token]))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL_TOKENS else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


WORDS = ("▁the", "▁th", "▁t", "he", "▁press", "▁pr", "ess", "es", "in", "▁in", "ing", "the", "▁▁")


def sentence_piece_keys() -> dict[str, Any]:
    """A vocabulary of specials, bytes, letters and WORDS; earlier words score higher."""
    letters = [*"▁abcdefghijklmnopqrstuvwxyz.", "é"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS, *letters]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(WORDS) + len(letters))
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(WORDS) + len(letters))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def text_model(directory: Path | None = None, keys: dict[str, Any] | None = None) -> Model:
    """A Model of which only the text side counts."""
    model = tiny_model()
    path = directory or Path("model.gguf")
    return Model(
        path,
        "gguf" if keys else "huggingface",
        model.program,
        model.weights,
        model.config,
        directory,
        keys,
    )
