"""A tokenizer built from the keys of a GGUF header (GGUF specification, `tokenizer.ggml.*`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from quant.format.errors import FileFormatError, UnsupportedModelError
from runtime.text.pretokenize import rule_named

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
_SPACE = "▁"
_PREFIX = "tokenizer.ggml."


class GgufVocabulary:
    """The token list of a GGUF header, checked: every list as long as the vocabulary, ids in it."""

    def __init__(self, metadata: Mapping[str, Any], source: str) -> None:
        self.metadata = metadata
        self.source = source
        self.tokens: list[str] = [str(token) for token in self.required("tokens")]
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise self.error("tokens", "holds the same token twice")
        types = self.get("token_type")
        self.types = [NORMAL] * len(self.tokens) if types is None else [int(t) for t in types]
        self.check_length("token_type", self.types)

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(_PREFIX + key, default)

    def required(self, key: str) -> Sequence[Any]:
        value = self.get(key)
        if value is None or isinstance(value, str | int | float) or len(value) == 0:
            raise self.error(key, "is missing or empty")
        values: Sequence[Any] = value
        return values

    def check_length(self, key: str, values: Sequence[Any]) -> None:
        if len(values) != len(self.tokens):
            raise self.error(key, f"has {len(values)} entries for {len(self.tokens)} tokens")

    def token_id(self, name: str) -> int | None:
        """Value of `tokenizer.ggml.<name>_token_id`, None where absent."""
        value = self.get(f"{name}_token_id")
        if value is None:
            return None
        if not 0 <= int(value) < len(self.tokens):
            raise self.error(f"{name}_token_id", f"is {value}, outside {len(self.tokens)} tokens")
        return int(value)

    def of_type(self, *types: int) -> list[str]:
        return [t for t, kind in zip(self.tokens, self.types, strict=True) if kind in types]

    def error(self, key: str, problem: str) -> FileFormatError:
        return FileFormatError(self.source, f"{_PREFIX}{key} {problem}")


def build_tokenizer(metadata: Mapping[str, Any], source: str) -> Tokenizer:
    """Tokenizer of a GGUF file; `source` names the file in errors.

    Raises FileFormatError for keys that contradict each other, UnsupportedModelError for a kind of
    tokenizer or a pre-tokenizer that is not known.
    """
    kind = metadata.get(f"{_PREFIX}model")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedModelError(
            f"{source}: tokenizer.ggml.model is {kind!r}; 'gpt2' (byte-level BPE) and 'llama' "
            f"(SentencePiece BPE) are supported"
        )
    vocabulary = GgufVocabulary(metadata, source)
    tokenizer = _byte_level(vocabulary) if kind == "gpt2" else _sentence_piece(vocabulary)
    specials = vocabulary.of_type(CONTROL, UNKNOWN)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    others = vocabulary.of_type(USER_DEFINED)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in others])
    return tokenizer


def _byte_level(vocabulary: GgufVocabulary) -> Tokenizer:
    rule = rule_named(str(vocabulary.get("pre", "default")))
    merges = []
    for merge in vocabulary.required("merges"):
        left, space, right = str(merge).partition(" ")
        if not space:
            raise vocabulary.error("merges", f"holds {merge!r}, which is not a pair of tokens")
        merges.append((left, right))
    tokenizer = _bpe(vocabulary, merges, ignore_merges=rule.ignore_merges)
    tokenizer.pre_tokenizer = rule.build()
    tokenizer.decoder = decoders.ByteLevel()
    _frame(tokenizer, vocabulary, add_bos=rule.add_bos)
    return tokenizer


def _sentence_piece(vocabulary: GgufVocabulary) -> Tokenizer:
    unknown = vocabulary.token_id("unknown")
    tokenizer = _bpe(
        vocabulary,
        _merges_from_scores(vocabulary),
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    pieces: list[decoders.Decoder] = [
        decoders.Replace(_SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if vocabulary.get("add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(_SPACE))
        pieces.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(pieces)
    _frame(tokenizer, vocabulary, add_bos=True)
    return tokenizer


def _merges_from_scores(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    """SentencePiece merges whichever neighbours form the token of the highest score; as a list of
    pairs, that is every way to cut each token in two known ones, by falling score."""
    scores = [float(score) for score in vocabulary.required("scores")]
    vocabulary.check_length("scores", scores)
    known = {
        token: score
        for token, score, kind in zip(vocabulary.tokens, scores, vocabulary.types, strict=True)
        if kind == NORMAL
    }
    pairs = [
        (score, cut, len(token) - cut, token[:cut], token[cut:])
        for token, score in known.items()
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
    pairs.sort(key=lambda pair: pair[:3], reverse=True)
    return [(left, right) for *_, left, right in pairs]


def _bpe(vocabulary: GgufVocabulary, merges: list[tuple[str, str]], **options: Any) -> Tokenizer:
    try:
        return Tokenizer(models.BPE(vocabulary.ids, merges, **options))
    except Exception as error:  # the library raises bare Exception
        raise vocabulary.error("merges", f"do not fit the vocabulary: {error}") from error


def _frame(tokenizer: Tokenizer, vocabulary: GgufVocabulary, *, add_bos: bool) -> None:
    """Begin- and end-of-sequence tokens around a prompt, as the file's flags ask for."""
    bos, eos = vocabulary.token_id("bos"), vocabulary.token_id("eos")
    parts, specials = ["$A"], []
    if bos is not None and vocabulary.get("add_bos_token", add_bos):
        parts.insert(0, vocabulary.tokens[bos])
        specials.append((vocabulary.tokens[bos], bos))
    if eos is not None and vocabulary.get("add_eos_token", False):
        parts.append(vocabulary.tokens[eos])
        specials.append((vocabulary.tokens[eos], eos))
    if specials:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=parts, special_tokens=specials
        )
