"""Verification: every way in which an artifact can stop being its checkpoint is found and named."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from compile.manifest import write_manifest
from compile.model import Model
from compile.open_model import open_model
from compile.same_program import program_differences
from compile.to_gguf.build import build_gguf
from compile.verify import check_logits, probe_tokens, verify
from quant.format.errors import InputError
from quant.format.scheme import ActivationScheme, IntScheme, PerChannel, PerGroup
from quant.format.tensor import QuantizedTensor
from tests.tiny import TinySource, tiny_checkpoint, tiny_model

INT4 = IntScheme(4, True, PerGroup(64))
INT4_ASYMMETRIC = IntScheme(4, False, PerGroup(32))


def oracle_logits(model: Model, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    from runtime.engine.batch import StepBatch
    from runtime.executors.torch import TorchExecutor

    count = len(tokens)
    places = np.arange(count, dtype=np.int32)
    executor = TorchExecutor(model, num_pages=2, page_size=count)
    page_table, starts = np.array([[1]], np.int32), np.array([0, count], np.int32)
    return executor.step(StepBatch(np.array(tokens, np.int32), places, starts, page_table, places))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "checkpoint", tied=True, scheme=INT4)


def artifact_of(checkpoint: Path, type_name: str = "auto") -> Path:
    directory = checkpoint.parent / f"artifact-{type_name}"
    directory.mkdir()
    build_gguf(checkpoint, directory / "model.gguf", type_name)
    write_manifest(directory, "gguf")
    return directory


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"])
@pytest.mark.parametrize("scheme", [INT4, INT4_ASYMMETRIC, None], ids=str)
def test_a_gguf_holds_the_integers_of_its_checkpoint(
    family: str, scheme: IntScheme | None, tmp_path: Path
) -> None:
    source = tiny_checkpoint(
        tmp_path / "checkpoint", family, scheme=scheme, tied=family == "gemma2"
    )
    report = verify(artifact_of(source), source, oracle_logits)
    assert report.failures == []
    assert report.passed
    assert set(report.counts) == {"equal"}
    assert len(report.tensors) == len(open_model(source).program.weights())
    assert report.logits is not None
    assert report.logits.top1 == 1
    assert report.logits.max_difference < 1e-4
    assert report.files_checked == 1
    assert json.loads(json.dumps(report.to_json()))["passed"] is True


@pytest.mark.parametrize("type_name", ["q4_0", "q4_1", "q5_0", "q8_0"])
def test_floats_quantized_by_the_build_are_said_to_be_so(type_name: str, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "checkpoint")
    report = verify(artifact_of(source, type_name), source, oracle_logits)
    assert report.passed, report.failures
    assert report.counts["requantized"] >= 14
    assert report.logits is not None
    assert report.logits.bound is None


def test_a_changed_byte_is_found_by_its_digest(checkpoint: Path) -> None:
    artifact = artifact_of(checkpoint)
    payload = artifact / "model.gguf"
    data = bytearray(payload.read_bytes())
    data[-100] ^= 1
    payload.write_bytes(data)
    report = verify(artifact, checkpoint, oracle_logits)
    assert not report.passed
    assert report.failures[0].startswith("file model.gguf is changed (sha256 is")
    assert report.tensors == ()


def test_a_changed_integer_is_found_behind_a_good_digest(checkpoint: Path) -> None:
    artifact = artifact_of(checkpoint)
    other = shutil.copytree(checkpoint, checkpoint.parent / "other")
    tensors = load_file(other / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    tensors[f"{name}.weight_packed"][5, 2] ^= 1 << 8
    save_file(tensors, other / "model.safetensors")
    report = verify(artifact, other)
    assert report.failures == [f"tensor {name}.weight holds other numbers"]
    (found,) = [tensor for tensor in report.tensors if tensor.state == "different"]
    assert (found.mismatched, found.first[0].row, found.first[0].column) == (1, 5, 18)
    assert found.first[0].what == "integer"


def test_a_plain_checkpoint_can_be_verified_against_another(checkpoint: Path) -> None:
    assert verify(checkpoint, checkpoint).counts == {"equal": 20}
    other = tiny_checkpoint(checkpoint.parent / "other", tied=True, scheme=INT4, rope_theta=5e5)
    report = verify(checkpoint, other)
    assert len(report.failures) == 4
    assert "op layers.0.q_rotated has rope" in report.failures[0]


def test_a_repeated_head_must_equal_the_table(tmp_path: Path) -> None:
    tied = tiny_checkpoint(tmp_path / "tied", tied=True)
    untied = shutil.copytree(tied, tmp_path / "untied")
    tensors = load_file(untied / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, untied / "model.safetensors")
    assert verify(untied, tied, oracle_logits).passed
    assert verify(tied, untied, oracle_logits).passed
    tensors["lm_head.weight"][3, 4] += 1
    save_file(tensors, untied / "model.safetensors")
    assert verify(untied, tied).failures == ["tensor model.embed_tokens.weight holds other numbers"]
    assert verify(tied, untied).failures == ["tensor lm_head.weight holds other numbers"]


def test_nothing_to_check_is_no_success(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="--against"):
        verify(checkpoint)
    write_manifest(checkpoint, "checkpoint")
    assert verify(checkpoint).passed
    (checkpoint / "extra").touch()
    assert not verify(checkpoint).passed


def test_logits_have_the_last_word() -> None:
    model = tiny_model(scheme=INT4)
    expected = oracle_logits(model, probe_tokens(model))

    def logits(asked: Model, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        return expected + (np.float32(0.1) if asked is not model else 0)

    other = tiny_model(scheme=INT4)
    assert not check_logits(model, other, logits, {"equal"}).passed
    assert check_logits(model, model, logits, {"equal"}).passed
    assert check_logits(model, other, logits, {"equal", "requantized"}).passed
    silent = check_logits(model, other, lambda m, t: expected * np.float32("nan"), {"requantized"})
    assert not silent.passed


@pytest.mark.parametrize(
    "change",
    [{"rms_norm_eps": 2e-5}, {"hidden_act": "gelu_pytorch_tanh"}, {"rope_theta": 20_000.0}],
    ids=str,
)
def test_programs_that_compute_differently_are_told_apart(change: dict[str, Any]) -> None:
    assert program_differences(tiny_model().program, tiny_model().program) == []
    assert program_differences(tiny_model().program, tiny_model(**change).program)


def test_only_a_window_narrower_than_the_context_counts() -> None:
    plain, wide, narrow = (
        tiny_model("mistral", sliding_window=window).program for window in (None, 256, 255)
    )
    assert program_differences(plain, wide) == []
    (first, _) = program_differences(plain, narrow)
    assert first == "op layers.0.attended has window 255 instead of None"


def test_progress_reaches_its_end(checkpoint: Path) -> None:
    heard: list[tuple[int, int, str]] = []
    verify(artifact_of(checkpoint), checkpoint, on_progress=lambda *news: heard.append(news))
    assert heard[-1] == (20, 20, "tensors")


def test_tiny_checkpoints_are_the_models_in_memory(checkpoint: Path) -> None:
    opened, memory = open_model(checkpoint), tiny_model(tied=True, scheme=INT4)
    assert opened.program == memory.program
    assert isinstance(memory.weights, TinySource)
    for name in memory.weights.names():
        a, b = opened.weights.load(name), memory.weights.load(name)
        assert isinstance(a, QuantizedTensor) == isinstance(b, QuantizedTensor)
        if isinstance(a, QuantizedTensor) and isinstance(b, QuantizedTensor):
            a, b = a.dequantize(), b.dequantize()
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("noise", "passes"), [(0.0, True), (0.05, True), (2.0, False)])
def test_two_engines_that_round_inputs_are_held_to_a_divergence(noise: float, passes: bool) -> None:
    """A single engine twice is held to the same numbers, see `check_logits`."""
    scheme = IntScheme(8, True, PerChannel(), ActivationScheme("int8"))
    checkpoint = tiny_model(scheme=scheme)
    artifact = replace(checkpoint, kind="onnx")
    logits = np.random.default_rng(0).standard_normal((32, 384)).astype(np.float32)

    def noisy(model: Model, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        change = np.random.default_rng(1).standard_normal(logits.shape).astype(np.float32)
        return logits + change * np.float32(noise if model.kind == "onnx" else 0)

    check = check_logits(checkpoint, artifact, noisy, {"equal"})
    assert (check.passed, check.bound) == (passes, None) and check.kld_bound is not None
    again = check_logits(checkpoint, checkpoint, noisy, {"equal"})
    assert again.passed and again.bound is not None and again.kld_bound is None
