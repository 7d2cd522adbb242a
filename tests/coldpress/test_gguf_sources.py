"""A GGUF file as what is quantized and built from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from coldpress.cli import run
from compile.open_model import open_model
from compile.to_gguf import build_gguf
from quant.resume import ResumeStore
from runtime.text.template import load_template
from runtime.text.tokenizer import load_tokenizer
from tests.coldpress.conftest import Run
from tests.tiny import TEXT, tiny_checkpoint

FEW = ("calibration.samples=2", "calibration.tokens=16", "gptq.polish=0")
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe")},
    "gemma2": ("gemma2", {"tied": True}),
    "gemma3": ("gemma3_text", {"tied": True}),
    "phi3": ("phi3", {}),
}


def quantize(model: Path, out: Path, recipe: str, *options: object) -> int:
    small = [word for override in FEW for word in ("--set", override)]
    small += ["--set", "scheme.group_size=32"]
    return run(
        ["quantize", str(model), "-o", str(out), "--recipe", recipe, *small, *map(str, options)]
    )


def stored(directory: Path) -> dict[str, Any]:
    return load_file(directory / "model.safetensors")


def same_checkpoint(ours: Path, theirs: Path) -> None:
    found, expected = stored(ours), stored(theirs)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert found[name].tobytes() == values.tobytes(), name
    configs = [json.loads((p / "config.json").read_text()) for p in (ours, theirs)]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]


@pytest.mark.parametrize("case", FAMILIES)
def test_rounding_gives_the_same_integers(case: str, tmp_path: Path) -> None:
    family, options = FAMILIES[case]
    original = tiny_checkpoint(tmp_path / "model", family, **options)
    build_gguf(original, tmp_path / "model.gguf")
    for name, source in (("ours", tmp_path / "model.gguf"), ("theirs", original)):
        assert quantize(source, tmp_path / name, "rtn-w4a16") == 0
    same_checkpoint(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize("calibration", ["text", "self"])
def test_calibrating_gives_the_same_integers(
    calibration: str, tiny: Path, text_file: Path, tmp_path: Path
) -> None:
    build_gguf(tiny, tmp_path / "model.gguf")
    given = text_file if calibration == "text" else "self"
    for name, source in (("ours", tmp_path / "model.gguf"), ("theirs", tiny)):
        assert quantize(source, tmp_path / name, "w4a16", "--calibration", given) == 0
    same_checkpoint(tmp_path / "ours", tmp_path / "theirs")
    ours, theirs = (open_model(tmp_path / name) for name in ("ours", "theirs"))
    same_text(ours, theirs)


def same_text(ours: Any, theirs: Any) -> None:
    found, expected = load_tokenizer(ours), load_tokenizer(theirs)
    for text in (
        *TEXT.splitlines(),
        "",
        " a  b ",
        "<|im_start|>user\nhi<|im_end|>",
        "\u0915\u094d",
    ):
        assert found.encode(text) == expected.encode(text), text
        assert found.decode(found.encode(text)) == expected.decode(expected.encode(text))
    assert found.vocab_size == expected.vocab_size
    roles = ("bos_token", "eos_token", "pad_token")
    assert [found.special_tokens[r] for r in roles] == [expected.special_tokens[r] for r in roles]
    assert found.ending_ids >= expected.ending_ids
    messages = [{"role": "user", "content": "two and two?"}]
    templates = load_template(ours), load_template(theirs)
    assert templates[0] is not None and templates[1] is not None
    assert templates[0].render(messages) == templates[1].render(messages)


def test_transformers_reads_the_tokenizer(tiny: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    build_gguf(tiny, tmp_path / "model.gguf")
    assert quantize(tmp_path / "model.gguf", tmp_path / "ours", "rtn-w4a16") == 0
    ours, theirs = (
        transformers.AutoTokenizer.from_pretrained(path) for path in (tmp_path / "ours", tiny)
    )
    for line in TEXT.splitlines():
        assert ours(line)["input_ids"] == theirs(line)["input_ids"]
    assert ours.eos_token_id == theirs.eos_token_id and ours.bos_token_id == theirs.bos_token_id
    messages = [{"role": "user", "content": "two and two?"}]
    rendered = [t.apply_chat_template(messages, tokenize=False) for t in (ours, theirs)]
    assert rendered[0] == rendered[1]


def test_a_quantized_file_is_refused_unless_asked(
    tmp_path: Path, run_json: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    original = tiny_checkpoint(tmp_path / "model", hidden_size=256, intermediate=256)
    quantized = tmp_path / "model-q4.gguf"
    build_gguf(original, quantized, "q4_k_m")
    for command in ("quantize", "plan"):
        output = ["-o", str(tmp_path / "out")] if command == "quantize" else []
        assert run([command, str(quantized), *output, "--recipe", "rtn-w4a16"]) == 2
        message = capsys.readouterr().err
        assert "model-q4.gguf: is already quantized" in message
        assert "set dequantize_source=true" in message
    again = ("--set", "dequantize_source=true")
    assert quantize(quantized, tmp_path / "out", "rtn-w4a16", *again) == 0
    planned = run_json("plan", quantized, "--recipe", "rtn-w4a16", *again)
    assert any("16 weights of the model are quantized already" in n for n in planned["notes"])
    reader, result = open_model(quantized).weights, open_model(tmp_path / "out").weights
    name = "model.layers.0.mlp.up_proj.weight"
    read, rounded = reader.load(name).dequantize(), result.load(name).dequantize()  # type: ignore[union-attr]
    assert 0 < np.abs(rounded - read).max() < np.abs(read).max() / 7


def test_the_plan_reads_the_file_where_it_lies(tiny: Path, tmp_path: Path, run_json: Run) -> None:
    build_gguf(tiny, tmp_path / "model.gguf")
    ours = run_json("plan", tmp_path / "model.gguf", "--recipe", "w4a16")
    theirs = run_json("plan", tiny, "--recipe", "w4a16")
    assert ours.pop("model") == str(tmp_path / "model.gguf") and theirs.pop("model") == str(tiny)
    for planned in (ours, theirs):
        planned["tensors"].sort(key=lambda tensor: tensor["name"])
    assert ours == theirs


@pytest.mark.parametrize("target", ["gguf:q8_0", "onnx"])
def test_a_bare_file_is_built_from(target: str, tiny: Path, tmp_path: Path, run_json: Run) -> None:
    build_gguf(tiny, tmp_path / "model.gguf")
    for name, source in (("ours", tmp_path / "model.gguf"), ("theirs", tiny)):
        assert run(["build", str(source), "-o", str(tmp_path / name), "--target", target]) == 0
    run_json("verify", tmp_path / "ours", "--against", tmp_path / "model.gguf")
    ours, theirs = (open_model(tmp_path / name) for name in ("ours", "theirs"))
    for weight in theirs.weights.names():
        found, expected = (m.weights.load(weight) for m in (ours, theirs))
        values = [w if isinstance(w, np.ndarray) else w.dequantize() for w in (found, expected)]
        assert np.array_equal(values[0].astype(np.float32), values[1].astype(np.float32)), weight
    same_text(ours, theirs)


def test_blocks_travel_from_file_to_file(tmp_path: Path) -> None:
    """Byte by byte, experts and re-ordered rows included."""
    gguf = pytest.importorskip("gguf")
    original = tiny_checkpoint(tmp_path / "model", "mixtral", hidden_size=256, intermediate=256)
    first, second = tmp_path / "q4.gguf", tmp_path / "again"
    build_gguf(original, first, "q4_k_m")
    assert run(["build", str(first), "-o", str(second), "--target", "gguf"]) == 0
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(first).tensors}
    ours = {tensor.name: tensor for tensor in gguf.GGUFReader(second / "model.gguf").tensors}
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].tensor_type == tensor.tensor_type, name
        assert np.array_equal(ours[name].data, tensor.data), name


def test_a_killed_run_is_taken_up(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the second run opens the file anew."""
    model, text = tmp_path / "model.gguf", ("--calibration", "self")
    build_gguf(tiny, model)
    assert quantize(model, tmp_path / "whole", "w4a16", *text) == 0
    saved: list[int] = []
    save = ResumeStore.save

    def dying(self: ResumeStore, index: int, *arguments: Any) -> None:
        save(self, index, *arguments)
        raise KeyboardInterrupt

    def counting(self: ResumeStore, index: int, *arguments: Any) -> None:
        saved.append(index)
        save(self, index, *arguments)

    monkeypatch.setattr(ResumeStore, "save", dying)
    assert quantize(model, tmp_path / "out", "w4a16", *text) == 130
    monkeypatch.setattr(ResumeStore, "save", counting)
    assert quantize(model, tmp_path / "out", "w4a16", *text, "--resume") == 0
    assert saved == [1], "layer 0 was kept"
    same_checkpoint(tmp_path / "out", tmp_path / "whole")


def test_gates_compare_with_the_file(tiny: Path, text_file: Path, tmp_path: Path) -> None:
    build_gguf(tiny, tmp_path / "model.gguf")
    gate = ("--gate", "kld<=9", "--gate-text", text_file)
    assert quantize(tmp_path / "model.gguf", tmp_path / "out", "rtn-w4a16", *gate) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [source["name"] for source in manifest["sources"]] == ["model.gguf"]
    assert manifest["evaluation"]["baseline"] == "model"


@pytest.mark.parametrize("command", ["quantize", "plan", "build"])
def test_a_file_that_is_missing_or_broken_is_named(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 32)
    output, recipe = ["-o", str(tmp_path / "out")], ["--recipe", "w4a16"]
    rest = {
        "quantize": [*output, *recipe],
        "plan": recipe,
        "build": [*output, "--target", "gguf"],
    }
    for name in ("broken.gguf", "missing.gguf"):
        assert run([command, str(tmp_path / name), *rest[command]]) == 2
        assert name in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
