"""Which of llama.cpp's named pre-tokenizers a tokenizer.json describes.

Names: llama-vocab.cpp in github.com/ggml-org/llama.cpp. The rule is recognised by its regular
expressions, not by what it does to one sample, so that added tokens do not matter.
"""

from collections.abc import Mapping
from typing import Any

from quant.format.errors import UnsupportedModelError

Rule = tuple[str, ...]

_DIGIT = r"\p{N}"
_GPT2_TAIL = r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT2 = "'s|'t|'re|'ve|'m|'ll|'d" + _GPT2_TAIL
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_OPENING = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = (
    rf"{_OPENING}{_UPPER}*{_LOWER}+|{_OPENING}{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDING = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"{_OPENING}{_UPPER}*{_LOWER}+{_ENDING}|{_OPENING}{_UPPER}+{_LOWER}*{_ENDING}|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SYNONYMS = {"'(?:[sdmt]|ll|ve|re)" + _GPT2_TAIL: _GPT2, "[0-9]": _DIGIT, r"\d": _DIGIT}

NAMES: Mapping[tuple[Rule, bool], str] = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGIT, _GPT2), False): "smollm",
    ((_CASELESS + r"\p{N}{1,3}" + _TAIL,), True): "llama-bpe",
    ((_CASELESS + r"\p{N}{1,3}" + _TAIL,), False): "smaug-bpe",
    ((_CASELESS + r"\p{N}" + _TAIL,), False): "qwen2",
    ((_TEKKEN,), True): "tekken",
    ((_GPT4O,), False): "gpt-4o",
}
"""By the regular expressions applied in turn, and by whether whole-word tokens skip merging."""

_MARKS = (
    "llama.cpp splits words at combining marks where this tokenizer does not: text in "
    "scripts that use them, such as Devanagari, gets other tokens there"
)
APPROXIMATE = {"tekken": _MARKS, "gpt-4o": _MARKS}
"""Names whose rule in llama.cpp is not quite the original, with what that means."""


def pretokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """The value of `tokenizer.ggml.pre` for a byte-level tokenizer.json.

    Raises UnsupportedModelError with the expressions when llama.cpp has no name for them here.
    """
    rule = tuple(_patterns(tokenizer.get("pre_tokenizer")))
    whole_words = bool(tokenizer["model"].get("ignore_merges"))
    name = NAMES.get((rule, whole_words))
    if name is None:
        raise UnsupportedModelError(
            f"tokenizer.json splits words by {list(rule)} with ignore_merges={whole_words}, for "
            f"which no GGUF pre-tokenizer is known; known: {', '.join(NAMES.values())}"
        )
    return name


def _patterns(step: Any) -> list[str]:
    """The regular expressions of a pre_tokenizer, each isolating its matches."""
    kind = step.get("type") if isinstance(step, Mapping) else None
    if kind == "Sequence":
        return [pattern for part in step["pretokenizers"] for pattern in _patterns(part)]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return [_GPT2] if step.get("use_regex", True) else []
    if kind == "Digits" and step.get("individual_digits"):
        return [_DIGIT]
    if kind == "Split" and "Regex" in step["pattern"] and _isolates(step):
        pattern = step["pattern"]["Regex"]
        return [_SYNONYMS.get(pattern, pattern)]
    raise UnsupportedModelError(f"tokenizer.json has the pre_tokenizer {step}, unknown to GGUF")


def _isolates(step: Mapping[str, Any]) -> bool:
    """An inverted "Removed" keeps the matches; it isolates them where the pattern covers all."""
    behaviour = (step.get("behavior"), bool(step.get("invert")))
    covers_all = str(step["pattern"]["Regex"]).endswith(r"|\s+")
    return behaviour == ("Isolated", False) or (behaviour == ("Removed", True) and covers_all)
