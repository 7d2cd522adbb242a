"""What llama.cpp itself makes of our files: the same logits, the same tokens."""

import random
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from compile.to_gguf import build_gguf
from compile.to_gguf.pretokenizer import APPROXIMATE
from tests.compile.to_gguf.make_tokenizers import (
    TOKENIZER_NAMES,
    put_tokenizer,
    tokenizer_named,
)
from tests.tiny import GEMMAS, LLAMA3, LONGROPE, TEXT, YARN, tiny_checkpoint

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

PROMPT = [1, 300, 17, 42, 255, 8, 100, 311, 9, 64, 5, 201]
CASES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tied": True}),
    "llama-biases": ("llama", {"bias": True}),
    "llama-ungrouped": ("llama", {"kv_heads": 4}),
    "llama-wide-heads": ("llama", {"head_dim": 32}),
    "llama-llama3-rope": ("llama", {"rope_scaling": LLAMA3}),
    "llama-linear-rope": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama-yarn-rope": ("llama", {"rope_scaling": YARN}),
    "mistral": ("mistral", {}),
    "mistral-window": ("mistral", {"sliding_window": 32}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tied": True}),
    "qwen2-yarn-rope": ("qwen2", {"rope_scaling": YARN}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3-tied": ("qwen3", {"tied": True}),
    "mixtral": ("mixtral", {}),
    "qwen3_moe": ("qwen3_moe", {"head_dim": 32, "tied": True}),
    "gemma2": ("gemma2", {"tied": True, "layers": 3}),
    "gemma2-wide-heads": ("gemma2", {"tied": True, "head_dim": 32, "hidden_size": 96}),
    "gemma2-no-window-first": (
        "gemma2",
        {"tied": True, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "gemma3": ("gemma3_text", {"tied": True, "layers": 3, "head_dim": 32}),
    "gemma3-linear-rope": (
        "gemma3_text",
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "final_logit_softcapping": 2.0},
    ),
    "phi3": ("phi3", {}),
    "phi3-tied": ("phi3", {"tied": True, "kv_heads": 1}),
    "phi3-longrope": (
        "phi3",
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": 256, "max_positions": 512},
    ),
}
LOGIT_NOISE = 1e-4
"""float32 sums of at most 128 products of size one in another order, a few hundred in a row."""
GELU_NOISE = 2.0**-10
"""llama.cpp looks gelu up in a table of float16: of what goes in and of what comes out, each is
wrong by half a unit in the last place; a share of the largest logit for each layer."""


def open_llama(path: Path, n_ctx: int = 64) -> Any:
    exact_cache = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    threads = {"n_threads": 1, "n_threads_batch": 1}
    return llama_cpp.Llama(
        str(path), n_ctx=n_ctx, logits_all=True, verbose=False, **exact_cache, **threads
    )


def transformers_logits(directory: Path, tokens: list[int]) -> npt.NDArray[np.float32]:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = model(torch.tensor([tokens])).logits[0].numpy()
    return logits


@pytest.mark.parametrize("case", CASES)
def test_float_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    family, options = CASES[case]
    directory = tiny_checkpoint(tmp_path / "model", family, dtype="float32", **options)
    build_gguf(directory, tmp_path / "model.gguf")
    model = open_llama(tmp_path / "model.gguf")
    model.eval(PROMPT)
    ours = np.array(model.scores[: len(PROMPT)])
    reference = transformers_logits(directory, PROMPT)

    assert np.abs(ours - reference).max() < noise(family, options, reference)
    assert (ours.argmax(axis=1) == reference.argmax(axis=1)).all()


def noise(family: str, options: Mapping[str, Any], logits: npt.NDArray[np.float32]) -> float:
    share = GELU_NOISE * options.get("layers", 2) if family in GEMMAS else 0.0
    return LOGIT_NOISE + share * float(np.abs(logits).max())


def test_longer_contexts_have_the_long_factors(tmp_path: Path) -> None:
    """llama.cpp's context here is of 256 tokens, above the trained 64: it takes the long list from
    the first token on, as transformers does for a sequence that is longer than the trained one."""
    directory = tiny_checkpoint(tmp_path / "model", "phi3", dtype="float32", rope_scaling=LONGROPE)
    built = build_gguf(directory, tmp_path / "model.gguf")
    assert any("up to 64 tokens" in note for note in built.notes)
    tokens = PROMPT * 6
    model = open_llama(tmp_path / "model.gguf", n_ctx=256)
    model.eval(tokens)
    reference = transformers_logits(directory, tokens)
    assert np.abs(np.array(model.scores[: len(tokens)]) - reference).max() < LOGIT_NOISE


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "phi3", "mixtral"])
def test_blocks_are_read_as_the_numbers_that_they_hold(family: str, tmp_path: Path) -> None:
    """llama.cpp rounds activations to 8 bits before it multiplies them with blocks: about 1/250 of
    each product at random, so the mean distance stays far below one rounding of the weights."""
    directory = tiny_checkpoint(tmp_path / "model", family, tied=family == "gemma2")
    reference = transformers_logits(directory, PROMPT)
    for name in ("q8_0", "q5_0"):
        build_gguf(directory, tmp_path / f"{name}.gguf", name)
        model = open_llama(tmp_path / f"{name}.gguf")
        model.eval(PROMPT)
        distance = np.abs(np.array(model.scores[: len(PROMPT)]) - reference)
        assert distance.mean() < {"q8_0": 0.03, "q5_0": 0.12}[name] * reference.std()


@pytest.mark.parametrize("name", TOKENIZER_NAMES)
def test_text_gets_the_same_tokens(name: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer_json = tokenizer_named(name)
    directory = tiny_checkpoint(tmp_path / "model", "llama", tied=True, vocab=512)
    put_tokenizer(directory, tokenizer_json)
    build_gguf(directory, tmp_path / "model.gguf")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    vocabulary = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    for text in corpus(300, marks=name not in APPROXIMATE):
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        found = vocabulary.tokenize(text.encode(), add_bos=False, special=True)
        assert found == expected, text
        with_bos = vocabulary.tokenize(text.encode(), add_bos=True, special=True)
        assert with_bos == tokenizer.encode(text).ids


def corpus(count: int, marks: bool = True) -> list[str]:
    """Strings of words, spaces, digits, scripts, emoji, newlines and special tokens, in any mix;
    `marks`: with combining marks, which llama.cpp's tekken rule is known to split differently."""
    pieces = [
        *TEXT.split(),
        *(" ", "  ", "    ", "\n", "\n\n", "\t", "\r\n", " \n "),
        *("1", "23", "456", "7890", "3.14", "1,000,000", "٣٤", "²"),
        *("日本語", "中文。", "한국어", "Привет", "naïve", "Ünïcödé", "שלום", "हिन्दी", "ﬁ"),
        *("🙂", "👩‍👩‍👧", "🇩🇪", "\u200b", "\u00a0", "\u3000"),
        *("don't", "I'll", "WE'RE", "it's", "'s", "!!!", "...", "—", "<|", "|>", "(a+b)*c"),
        *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_end|>\n"),
    ]
    if not marks:
        pieces = [p for p in pieces if not any(unicodedata.category(c)[0] == "M" for c in p)]
    draw = random.Random(0)
    return [
        draw.choice(("", " ")).join(draw.choices(pieces, k=draw.randint(1, 12)))
        for _ in range(count)
    ]
