"""Checkpoints that read pictures too: their text models, and what is said of the rest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import Gemma3ForConditionalGeneration

from compile.compare import compare_weights
from compile.open_model import open_model
from compile.same_program import program_differences
from compile.text_part import text_part
from compile.to_gguf import build_gguf
from quant.format.errors import InputError, UnsupportedModelError
from quant.format.scheme import IntScheme, PerGroup
from runtime.engine.batch import StepBatch
from runtime.executors.torch import TorchExecutor
from tests.tiny import TinySource, tiny_checkpoint

VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
PICTURE = {"vision_tower.head.probe": np.zeros((1, 1, 16), np.float32)}
PREFIXES = [("language_model.", "language_model.lm_head."), ("model.language_model.", "lm_head.")]


def with_pictures(
    text: Path, directory: Path, prefix: tuple[str, str] = PREFIXES[0], **changes: Any
) -> Path:
    """The checkpoint `text` as the language model of a whole."""
    directory.mkdir()
    config = json.loads((text / "config.json").read_text())
    whole = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {key: value for key, value in config.items() if key != "architectures"},
        "vision_config": VISION,
        "mm_tokens_per_image": 1,
        "dtype": config["dtype"],
        "tie_word_embeddings": config["tie_word_embeddings"],
    }
    if "quantization_config" in config:
        whole["quantization_config"] = whole["text_config"].pop("quantization_config")
    (directory / "config.json").write_text(json.dumps(whole | changes))
    stored, (inner, head) = {}, prefix
    for name, value in load_file(text / "model.safetensors").items():
        rest = name if inner == "language_model." else name.removeprefix("model.")
        whole_name = name.replace("lm_head.", head) if name.startswith("lm_head.") else inner + rest
        stored[whole_name] = value
    save_file(stored | PICTURE, directory / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (directory / name).write_bytes((text / name).read_bytes())
    return directory


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("scheme", [None, IntScheme(4, True, PerGroup(32))], ids=str)
def test_the_text_model_is_opened(
    prefix: tuple[str, str], scheme: IntScheme | None, tmp_path: Path
) -> None:
    text = tiny_checkpoint(tmp_path / "text", "gemma3_text", scheme=scheme)
    whole = with_pictures(text, tmp_path / "whole", prefix)
    ours, theirs = open_model(whole), open_model(text)
    assert program_differences(theirs.program, ours.program) == []
    assert ours.notes == ("1 tensors that read pictures are left out: the text model alone is run",)
    build_gguf(whole, tmp_path / "whole.gguf")
    build_gguf(text, tmp_path / "text.gguf")
    names = [open_model(tmp_path / f"{name}.gguf").weights for name in ("whole", "text")]
    for name in names[0].names():
        pair = names[0].load(name), names[1].load(name)
        assert compare_weights(name, *pair).state == "equal"


def test_its_logits_are_those_of_transformers(tmp_path: Path) -> None:
    text = tiny_checkpoint(tmp_path / "text", "gemma3_text", dtype="float32", tied=True)
    whole = with_pictures(text, tmp_path / "whole")
    reference = Gemma3ForConditionalGeneration.from_pretrained(
        whole, dtype="float32", attn_implementation="eager"
    )
    tokens = np.arange(3, 23, dtype=np.int32)
    with torch.inference_mode():
        expected = reference(torch.tensor(tokens[None].astype(np.int64))).logits[0].numpy()
    places = np.arange(20, dtype=np.int32)
    executor = TorchExecutor(open_model(whole), num_pages=2, page_size=20)
    starts, pages = np.array([0, 20], np.int32), np.array([[1]], np.int32)
    found = executor.step(StepBatch(tokens, places, starts, pages, places))
    # As in the oracle's own tests: sums of up to 128 terms, some dozens of them in a row.
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_what_is_in_neither_part_is_refused(tmp_path: Path) -> None:
    text = tiny_checkpoint(tmp_path / "text", "gemma3_text")
    whole = with_pictures(text, tmp_path / "whole")
    tensors = load_file(whole / "model.safetensors") | {"audio.weight": np.zeros(3, np.float32)}
    save_file(tensors, whole / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"not used by this model: audio\.weight"):
        open_model(whole)
    with pytest.raises(InputError, match="must hold a table 'text_config'"):
        text_part({"model_type": "gemma3"}, TinySource({}))


def test_other_models_are_left_as_they_are() -> None:
    config, source = {"model_type": "llama", "text_config": {}}, TinySource({})
    assert text_part(config, source) == (config, source, ())
