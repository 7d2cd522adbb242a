"""From checkpoint to checkpoint: what lands on disk, read by transformers itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quant.format.checkpoint import TEXT_FILES, open_checkpoint
from quant.format.errors import CheckFailedError, InputError
from quant.format.tensor import QuantizedTensor
from quant.recipe import load_recipe
from quant.report import REPORT_NAME
from quant.run import quantize_checkpoint
from quant.skeleton import to_torch
from tests.tiny import TEXT, tiny_checkpoint

SMALL = ("calibration.samples=6", "calibration.tokens=24", "scheme.group_size=32")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("family", "options", "recipe"),
    [
        ("llama", {"tied": True}, "w4a16"),
        ("llama", {"tied": False, "bias": True, "dtype": "float32"}, "w4a16-asym"),
        ("qwen2", {"tied": False}, "w4a16"),
        ("qwen3", {"tied": True, "dtype": "float16"}, "w4a16"),
        ("mistral", {"dtype": "float32"}, "w4a16"),
        ("gemma2", {"tied": True, "dtype": "float32"}, "w4a16"),
        ("gemma2", {"tied": True}, "rtn-w4a16"),
        ("gemma3_text", {"tied": True}, "w4a16"),
        ("gemma3_text", {"tied": True}, "rtn-w4a16"),
        ("phi3", {"tied": False}, "w4a16"),
        ("phi3", {"tied": True, "dtype": "float32"}, "rtn-w4a16"),
    ],
)
def test_transformers_loads_the_same_numbers(
    tmp_path: Path, text: str, family: str, options: dict[str, Any], recipe: str
) -> None:
    import transformers

    model = tiny_checkpoint(tmp_path / "model", family, **options)
    quantize_checkpoint(model, tmp_path / "out", load_recipe(recipe, SMALL), text)
    ours = open_checkpoint(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32
    )
    theirs(torch.tensor([[1, 2, 3]]))  # the first forward unpacks the weights
    state = dict(theirs.named_parameters())
    quantized = 0
    for name in ours.names():
        value = ours.load(name)
        if isinstance(value, QuantizedTensor):
            quantized += 1
            expected = torch.from_numpy(value.dequantize())
        else:
            expected = to_torch(value).float()
        assert torch.equal(state[name].float(), expected), name
    assert quantized == 2 * (4 if family == "phi3" else 7)
    assert ("lm_head.weight" in ours.names()) == (not options.get("tied", False))


def test_what_is_not_quantized_is_copied_bit_for_bit(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", "qwen2", dtype="float16")
    recipe = load_recipe("rtn-w4a16", ["ignore=[lm_head, '*.down_proj']"])
    report = quantize_checkpoint(model, tmp_path / "out", recipe)
    before, after = open_checkpoint(model), open_checkpoint(tmp_path / "out")
    assert set(before.names()) == set(after.names())
    kept = [n for n in before.names() if str(after.scheme(n)) == "float16"]
    assert sum("down_proj" in name for name in kept) == 2
    for name in kept:
        np.testing.assert_array_equal(after.load_raw(name), before.load_raw(name))
    for name in TEXT_FILES:
        if (model / name).exists():
            assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()
    states = {m.module: m.state for m in report.modules}
    assert states["model.layers.0.mlp.down_proj"] == "kept in 16 bit: ignored by '*.down_proj'"
    assert states["lm_head"] == "kept in 16 bit: outside the decoder layers"
    assert after.quantization_config is not None
    assert set(after.quantization_config["ignore"]) == {
        "lm_head",
        "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.down_proj",
    }


def test_two_runs_give_the_same_bytes_and_leave_random_state_alone(
    tmp_path: Path, text: str
) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    torch.manual_seed(5)
    state, legacy = (
        torch.random.get_rng_state(),
        np.random.get_state(legacy=False)["state"]["key"].copy(),
    )
    first = quantize_checkpoint(model, tmp_path / "a", load_recipe("w4a16", SMALL), text)
    torch.manual_seed(6)
    other = torch.random.get_rng_state()
    quantize_checkpoint(model, tmp_path / "b", load_recipe("w4a16", SMALL), text)
    assert torch.equal(torch.random.get_rng_state(), other)
    assert not torch.equal(state, other)
    assert (np.random.get_state(legacy=False)["state"]["key"] == legacy).all()
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert first.calibration["samples"] == 6


def test_the_report_tells_each_linear(tmp_path: Path, text: str) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    seen: list[tuple[int, int, str]] = []
    report = quantize_checkpoint(
        model,
        tmp_path / "out",
        load_recipe("w4a16", SMALL),
        text,
        on_progress=lambda *step: seen.append(step),
    )
    written = json.loads((tmp_path / "out" / REPORT_NAME).read_text())
    assert [m["module"] for m in written["modules"]] == [m.module for m in report.modules]
    ours = open_checkpoint(tmp_path / "out")
    for module in report.modules[:-1]:
        assert module.state == "as asked"
        assert module.tokens == 6 * 24
        assert module.weight_error is not None
        assert 0 < module.weight_error < 0.2
        assert module.output_error is not None
        assert 0 < module.output_error < module.weight_error
        assert module.damping == 0.01
        value = ours.load(f"{module.module}.weight")
        assert isinstance(value, QuantizedTensor)
        assert module.digest == value.digest()
    assert report.bytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert seen[-1] == (2, 2, "layers")
    assert str(tmp_path) not in (tmp_path / "out" / REPORT_NAME).read_text()


def test_mixed_schemes_and_algorithms(tmp_path: Path, text: str) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    down = "{pattern: '*.down_proj', scheme: {num_bits: 8, group_size: channel}, algorithm: rtn}"
    recipe = load_recipe("w4a16", [*SMALL, f"overrides=[{down}]"])
    report = quantize_checkpoint(model, tmp_path / "out", recipe, text)
    by_module = {m.module.rpartition(".")[2]: m for m in report.modules}
    assert (by_module["down_proj"].scheme, by_module["down_proj"].algorithm) == (
        "int8-sym-channel",
        "rtn",
    )
    assert by_module["down_proj"].output_error is not None
    assert by_module["up_proj"].scheme == "int4-sym-g32"


def test_a_failed_run_leaves_nothing(tmp_path: Path, text: str) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    recipe = load_recipe("w4a16", ["calibration.samples=60000"])
    with pytest.raises(InputError, match="tokens but"):
        quantize_checkpoint(model, tmp_path / "out", recipe, text)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_no_input_that_varies_is_no_silent_nearest(tmp_path: Path, text: str) -> None:
    """Embeddings of NaN: every Hessian is NaN, and the run must say so."""
    from safetensors.numpy import load_file, save_file

    model = tiny_checkpoint(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] * np.nan
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckFailedError, match="q_proj: fallback rtn"):
        quantize_checkpoint(model, tmp_path / "out", load_recipe("w4a16", SMALL), text)
    assert not (tmp_path / "out").exists()
