"""Scales of the KV cache, compared with what transformers' own cache holds of the same text."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coldpress.planning import plan_quantize
from quant.calibration import FileSource, gather
from quant.format.checkpoint import open_checkpoint
from quant.format.errors import InputError, RecipeError, UnsupportedModelError
from quant.format.kv_cache import KvCacheScheme
from quant.format.tensor import QuantizedTensor
from quant.kv_cache import CacheRecorder, require_kv_cache
from quant.layers import LayerLoop
from quant.preflight import prepare
from quant.recipe import load_recipe
from quant.resume import resume_directory
from quant.run import quantize_checkpoint
from quant.skeleton import build_skeleton
from tests.tiny import TEXT, tiny_checkpoint, tiny_config

SMALL = ("calibration.samples=5", "calibration.tokens=24", "scheme.group_size=32")
LARGEST = {"fp8": 448.0, "int8": 127.5}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def theirs(directory: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@pytest.mark.parametrize(
    ("family", "kind", "more"),
    [
        ("llama", "fp8", ()),
        ("qwen3", "int8", ()),
        ("qwen2", "fp8", ("algorithm=rtn",)),
        ("mistral", "int8", ("algorithm=gptaq", "awq={}", "calibration.memory_mib=1")),
    ],
)
def test_scales_are_the_largest_that_the_stored_model_caches(
    tmp_path: Path, text: Path, family: str, kind: str, more: tuple[str, ...]
) -> None:
    """After rotary embedding and norms, of every sample, in the model that the file holds."""
    model = tiny_checkpoint(tmp_path / "model", family, dtype="float32")
    recipe = load_recipe("w4a16", [*SMALL, f"kv_cache={kind}", *more])
    report = quantize_checkpoint(model, tmp_path / "out", recipe, FileSource(text))
    ours = open_checkpoint(tmp_path / "out")
    assert ours.kv_cache == KvCacheScheme("e4m3" if kind == "fp8" else "int8")
    assert any("KV cache" in note for note in report.notes)
    skeleton = build_skeleton(model, ours.config)
    data = gather(FileSource(text), open_checkpoint(model), skeleton, recipe.calibration)
    reader, plain = theirs(tmp_path / "out"), theirs(model)
    for name in ours.names():  # the reader of compressed-tensors would round its cache
        value = ours.load(name)
        number = value.dequantize() if isinstance(value, QuantizedTensor) else value
        plain.get_parameter(name).data.copy_(torch.from_numpy(np.asarray(number)))
    with torch.no_grad():
        cache = plain(torch.from_numpy(data.tokens), use_cache=True).past_key_values
    for index, (layer, decoder) in enumerate(zip(cache.layers, reader.model.layers, strict=True)):
        scales = ours.kv_scales(index)
        assert scales is not None
        # Batches of another size give sums in another order: a few last bits of float32.
        expected = [float(x.abs().max()) / LARGEST[kind] for x in (layer.keys, layer.values)]
        np.testing.assert_allclose([scales.keys, scales.values], expected, rtol=1e-4)
        read = [float(getattr(decoder.self_attn, f"{part}_scale").detach()) for part in "kv"]
        assert read == [scales.keys, scales.values]


def test_the_plan_counts_them_to_the_byte(tmp_path: Path, text: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", "llama")
    asked = [*SMALL, "kv_cache=fp8"]
    plain, planned = (plan_quantize(model, "w4a16", a) for a in (SMALL, asked))
    assert planned["total_bytes"] == plain["total_bytes"] + 2 * 2 * 4
    rows = [t for t in planned["tensors"] if t["name"].endswith(("k_scale", "v_scale"))]
    verdicts = plan_quantize(model, "w4a16", [*SMALL, "kv_cache=int8"])["servers"]
    assert {v["server"]: v["loads"] for v in verdicts}["vLLM"] is False
    assert all(v["loads"] for v in planned["servers"])
    assert len(rows) == 4 and all("fp8 KV cache" in row["reason"] for row in rows)
    recipe = load_recipe("w4a16", asked)
    report = quantize_checkpoint(model, tmp_path / "out", recipe, FileSource(text))
    assert report.bytes == planned["file_bytes"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["kv_cache_scheme"]["type"] == "float"
    kept = sum(np.prod(open_checkpoint(model).shape(n)) for n in open_checkpoint(model).names())
    assert report.parameters == kept, "scales are no parameters of the model"


def test_nearest_rounding_needs_text_for_them() -> None:
    asked = ["scales=range", "algorithm=rtn", "balance=null"]
    assert not load_recipe("w4a16", asked).needs_calibration
    assert load_recipe("w4a16", [*asked, "kv_cache=fp8"]).needs_calibration


@pytest.mark.parametrize("output_format", ["gptq", "gptq_v2", "awq", "fp8", "ggml"])
def test_formats_without_room_for_them_refuse_first(tmp_path: Path, output_format: str) -> None:
    """Before anything of the recipe that the format could object to as well."""
    model = tiny_checkpoint(tmp_path / "model", "llama")
    recipe = load_recipe("w4a16", [*SMALL, "kv_cache=int8", f"format={output_format}"])
    with pytest.raises(RecipeError, match=r"kv_cache.*choose format=compressed-tensors"):
        prepare(model, recipe)


def test_models_without_plain_keys_refuse_first(tmp_path: Path) -> None:
    config = tiny_config("llama")
    model = tiny_checkpoint(tmp_path / "model", "llama")
    skeleton = build_skeleton(model, config)
    require_kv_cache("fp8", "compressed-tensors", skeleton)
    del skeleton.layers[1].get_submodule("self_attn").k_proj
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.1.*kv_cache=none"):
        require_kv_cache("fp8", "compressed-tensors", skeleton)


def test_a_resumed_run_writes_the_same_scales(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_checkpoint(tmp_path / "model", "llama")
    recipe = load_recipe("w4a16", [*SMALL, "kv_cache=fp8"])
    quantize_checkpoint(model, tmp_path / "whole", recipe, FileSource(text))
    honest = LayerLoop.round_layer

    def dying(self: LayerLoop, index: int) -> Any:
        if index == 1:
            raise KeyboardInterrupt
        return honest(self, index)

    monkeypatch.setattr(LayerLoop, "round_layer", dying)
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(model, tmp_path / "out", recipe, FileSource(text))
    monkeypatch.setattr(LayerLoop, "round_layer", honest)
    for state in resume_directory(tmp_path / "out").glob("state-*"):
        state.unlink()  # so that the activations come out of layer 0 once more
    quantize_checkpoint(model, tmp_path / "out", recipe, FileSource(text), resume=True)
    for path in sorted((tmp_path / "whole").iterdir()):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_the_recorder_passes_on_what_it_sees() -> None:
    recorder = CacheRecorder()
    keys = torch.arange(-6.0, 6.0).reshape(1, 2, 3, 2)
    threads = [
        threading.Thread(target=recorder.update, args=(keys / n, 3 * keys / n, 0))
        for n in range(1, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.update(keys, keys, 0, {"sin": 0}) == (keys, keys)
    stored = recorder.tensors("model.layers.0", KvCacheScheme("int8"))
    assert stored["model.layers.0.self_attn.k_scale"] == np.float32(6 / 127.5)
    assert stored["model.layers.0.self_attn.v_scale"] == np.float32(18 / 127.5)


@pytest.mark.parametrize("values", [None, float("nan"), float("inf")])
def test_a_cache_of_nothing_or_nonsense_is_an_error(values: float | None) -> None:
    recorder = CacheRecorder()
    if values is not None:
        recorder.update(torch.tensor([values]), torch.tensor([1.0]))
        recorder.update(torch.tensor([2.0]), torch.tensor([1.0]))
    with pytest.raises(InputError, match=r"KV cache|not finite"):
        recorder.tensors("model.layers.0", KvCacheScheme())
