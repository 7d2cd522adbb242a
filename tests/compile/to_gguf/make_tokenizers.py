"""Small real tokenizers of every kind that a GGUF file can hold, trained on tests.tiny's TEXT."""

import json
from pathlib import Path
from typing import Any

from compile.to_gguf.pretokenizer import NAMES, Rule
from tests.tiny import SPECIAL_TOKENS, TEXT

SPACE = "▁"


def byte_level(rule: Rule, ignore_merges: bool, vocab: int = 384) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE that splits words by `rule`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    cuts: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, last])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    parsed: dict[str, Any] = json.loads(tokenizer.to_str())
    return parsed


def sentencepiece(vocab: int = 500) -> dict[str, Any]:
    """tokenizer.json of a SentencePiece-style BPE as Llama 2 has it: byte fallback, U+2581, and
    every way to cut a piece among the merges."""
    from tokenizers import Tokenizer, models, trainers

    trained = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=vocab - 259, show_progress=False)
    words = [SPACE + word for word in TEXT.split()]
    trained.train_from_iterator(words, trainer)
    learned = json.loads(trained.to_str())["model"]
    order = {left + right: rank for rank, (left, right) in enumerate(learned["merges"])}
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += list(order)
    pieces += [piece for piece in learned["vocab"] if piece not in order]
    known = set(learned["vocab"])
    cuts = [
        (order[piece], piece[:cut], piece[cut:])
        for piece in order
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    special = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for i, text in enumerate(("<unk>", "<s>", "</s>"))
    ]
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": [[left, right] for _, left, right in sorted(cuts)],
        },
    }


def gemma(longest: int = 31) -> dict[str, Any]:
    """The same pieces with Gemma's steps: no space before text, and runs of spaces and of newlines
    as tokens of their own, which merge first."""
    tokenizer = sentencepiece(512 - 2 * longest)
    pieces, merges = tokenizer["model"]["vocab"], []
    for unit in (SPACE, "\n"):
        for length in range(1 if unit == "\n" else 2, longest + 1):
            run = unit * length
            pieces[run] = len(pieces)
            merges += [[unit * cut, unit * (length - cut)] for cut in range(1, length)]
            token = {"id": pieces[run], "content": run, "single_word": False, "lstrip": False}
            token |= {"rstrip": False, "normalized": False, "special": False}
            tokenizer["added_tokens"].append(token)
    tokenizer["model"]["merges"] = [*merges, *tokenizer["model"]["merges"]]
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    tokenizer["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    return tokenizer


def tokenizer_named(name: str) -> dict[str, Any]:
    """`sentencepiece`, `gemma`, or a byte-level tokenizer by its llama.cpp name."""
    if name in ("sentencepiece", "gemma"):
        return sentencepiece() if name == "sentencepiece" else gemma()
    rule, ignore_merges = next(key for key, value in NAMES.items() if value == name)
    return byte_level(rule, ignore_merges)


def put_tokenizer(directory: Path, tokenizer: dict[str, Any]) -> None:
    """Replace a tiny checkpoint's tokenizer by another one."""
    text = json.dumps(tokenizer, ensure_ascii=False)
    (directory / "tokenizer.json").write_text(text, encoding="utf-8")
    special = [token["content"] for token in tokenizer["added_tokens"] if token["special"]]
    settings = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


TOKENIZER_NAMES = (*NAMES.values(), "sentencepiece", "gemma")
