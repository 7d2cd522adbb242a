"""How each family cuts text into words before byte-level BPE merges inside them.

GGUF files only carry the name of the rule (`tokenizer.ggml.pre`); the rules themselves are those
of the families' own published tokenizer.json files.
"""

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

from quant.format.errors import UnsupportedModelError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"


@dataclass(frozen=True)
class PreTokenizerRule:
    """Regular expressions applied in turn, each cutting the pieces that the one before left.

    ignore_merges: a word that is a token as a whole is taken without merging.
    add_bos: what llama.cpp assumes where the file does not say.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The rule as the tokenizers library runs it, bytes mapped to letters at the end."""
        cuts: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns
        ]
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*cuts, last])


_LLAMA3_RULE = PreTokenizerRule((_LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2_RULE = PreTokenizerRule((_QWEN2,))
_GPT2_RULE = PreTokenizerRule((_GPT2,))
_DIGITS_RULE = PreTokenizerRule((r"\p{N}", _GPT2))

RULES: dict[str, PreTokenizerRule] = {
    "llama3": _LLAMA3_RULE,
    "llama-v3": _LLAMA3_RULE,
    "llama-bpe": _LLAMA3_RULE,
    "falcon3": _LLAMA3_RULE,
    "smaug-bpe": PreTokenizerRule((_LLAMA3,)),
    "dbrx": PreTokenizerRule((_LLAMA3,)),
    "qwen2": _QWEN2_RULE,
    "deepseek-r1-qwen": _QWEN2_RULE,
    "stablelm2": _QWEN2_RULE,
    "smollm": _DIGITS_RULE,
    "starcoder": _DIGITS_RULE,
    "refact": _DIGITS_RULE,
    "command-r": _DIGITS_RULE,
    "gpt-2": _GPT2_RULE,
    "gpt2": _GPT2_RULE,
    "phi-2": _GPT2_RULE,
    "olmo": _GPT2_RULE,
    "mpt": _GPT2_RULE,
    "tekken": PreTokenizerRule((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": PreTokenizerRule((_GPT4O,)),
    "default": PreTokenizerRule((_PUNCTUATION, _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}


def rule_named(name: str) -> PreTokenizerRule:
    """The rule that `tokenizer.ggml.pre` names; raises UnsupportedModelError for an unknown one."""
    rule = RULES.get(name)
    if rule is None:
        known = ", ".join(sorted(RULES))
        raise UnsupportedModelError(
            f"tokenizer.ggml.pre is '{name}', a pre-tokenizer that is not known here; known: "
            f"{known}; serve the model from its Hugging Face directory instead"
        )
    return rule
