"""Mixtures of experts, from checkpoint to quantized checkpoint."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compile.families import check_weights
from compile.open_model import open_model
from quant.expert_stage import ExpertBlock, ExpertStage, RoutedBatch
from quant.experts import Expert, Experts
from quant.format.checkpoint import open_checkpoint
from quant.format.errors import CheckFailedError
from quant.format.experts import EXPERT_NAMES
from quant.format.scheme import IntScheme, PerGroup
from quant.format.tensor import QuantizedTensor
from quant.layers import LayerLoop
from quant.preflight import plan_quantization
from quant.recipe import Recipe, load_recipe
from quant.report import QuantizeReport
from quant.rounding_algorithms.dispatch import StageMoments, round_stage
from quant.rounding_algorithms.result import LayerResult
from quant.run import quantize_checkpoint
from quant.skeleton import set_parameter
from quant.tasks import LinearTask, RoundingSettings
from quant.workers import fixed_division
from tests.tiny import TEXT, stack_experts, tiny_checkpoint, tiny_config, tiny_shapes

SMALL = ("calibration.samples=6", "calibration.tokens=24", "scheme.group_size=32")
EXPERT_PARTS = {"mixtral": ("w1", "w2", "w3")}
LAYERS = CHOSEN = 2
COMMON_PARTS = ("gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_text(3 * TEXT, encoding="utf-8")
    return str(path)


def recipe_of(*more: str) -> Recipe:
    return load_recipe("w4a16", [*SMALL, "balance=null", *more])


def lonely_checkpoint(directory: Path, family: str = "mixtral") -> Path:
    """A model whose routers never choose expert 3: one of two opposite logits is above its 0."""
    from safetensors.numpy import load_file, save_file

    path = tiny_checkpoint(directory, family, dtype="float32", num_experts_per_tok=1)
    tensors = load_file(path / "model.safetensors")
    for name, value in tensors.items():
        if name.endswith(".gate.weight"):
            value[1], value[3] = -value[0], 0.0
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def modules_of(report: QuantizeReport) -> dict[str, Any]:
    return {module.module: module for module in report.modules}


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_every_expert_is_quantized_and_reported(family: str, text: str, tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", family)
    report = quantize_checkpoint(model, tmp_path / "out", recipe_of(), text)
    ours, source = open_checkpoint(tmp_path / "out"), open_checkpoint(model)
    assert sorted(ours.names()) == sorted(tiny_shapes(tiny_config(family)))
    modules = modules_of(report)
    routers = 0
    for name in ours.names():
        value, module = ours.load(name), name.removesuffix(".weight")
        if ".experts." in name or ".shared_expert." in name:
            assert isinstance(value, QuantizedTensor), name
            assert modules[module].state == "as asked"
            assert 0 < modules[module].tokens <= 6 * 24
        if name.endswith((".gate.weight", ".shared_expert_gate.weight")):
            routers += 1
            assert not isinstance(value, QuantizedTensor)
            assert value.tobytes() == source.load_raw(name).tobytes()
            assert modules[module].state.startswith("kept in 16 bit: chooses among experts")
    assert routers == (4 if family == "qwen2_moe" else 2)
    for part in EXPERT_PARTS.get(family, COMMON_PARTS):
        same = [m.tokens for n, m in modules.items() if ".experts." in n and n.endswith(part)]
        assert sum(same) == LAYERS * CHOSEN * 6 * 24


@pytest.mark.parametrize("form", ["gptq", "awq"])
def test_formats_of_one_scheme_hold_experts(form: str, text: str, tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", "qwen3_moe")
    recipe = recipe_of(f"format={form}", "scales=search", "scheme.symmetric=false")
    quantize_checkpoint(model, tmp_path / "out", recipe, text)
    ours = open_checkpoint(tmp_path / "out")
    for name in ours.names():
        assert isinstance(ours.load(name), QuantizedTensor) == ("_proj." in name), name


def test_the_config_ignores_routers_and_targets_linears(text: str, tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", "mixtral")
    quantize_checkpoint(model, tmp_path / "out", recipe_of(), text)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["targets"] == ["Linear"]
    routers = [f"model.layers.{layer}.block_sparse_moe.gate" for layer in (0, 1)]
    assert sorted(config["ignore"]) == sorted([*routers, "lm_head"])


def test_an_expert_without_tokens_ends_the_run_unless_allowed(text: str, tmp_path: Path) -> None:
    model = lonely_checkpoint(tmp_path / "model")
    with pytest.raises(CheckFailedError, match=r"experts\.3\.w1: statistics shared .* 0 tokens"):
        quantize_checkpoint(model, tmp_path / "out", recipe_of(), text)
    assert not (tmp_path / "out").exists()


def test_an_expert_without_tokens_is_not_rounded_to_nearest(text: str, tmp_path: Path) -> None:
    model = lonely_checkpoint(tmp_path / "model")
    allowing = recipe_of("allow=[shared_statistics]")
    report = quantize_checkpoint(model, tmp_path / "gptq", allowing, text)
    nearest = quantize_checkpoint(model, tmp_path / "rtn", recipe_of("algorithm=rtn"), text)
    ours, theirs = modules_of(report), modules_of(nearest)
    for part in EXPERT_PARTS["mixtral"]:
        module = f"model.layers.0.block_sparse_moe.experts.3.{part}"
        assert ours[module].state == "statistics shared with its layer: 0 tokens of its own"
        assert ours[module].tokens == 0
        assert ours[module].damping is not None
        assert ours[module].digest != theirs[module].digest
        assert 0.0 < ours[module].output_error < 1.0


def test_min_tokens_decides_who_shares(text: str, tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", "qwen3_moe")
    recipe = recipe_of("allow=[shared_statistics]", "experts.min_tokens=70")
    modules = modules_of(quantize_checkpoint(model, tmp_path / "out", recipe, text))
    experts = [module for name, module in modules.items() if ".experts." in name]
    for module in experts:
        assert module.state.startswith("statistics shared") == (module.tokens < 70)
    assert {module.tokens < 70 for module in experts} == {True, False}


def test_the_plan_names_experts_and_routers(tmp_path: Path) -> None:
    plan = plan_quantization(tiny_checkpoint(tmp_path, "mixtral"), recipe_of())
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    router = tensors["model.layers.0.block_sparse_moe.gate.weight"]
    assert (router.scheme, router.reason.split(",")[0]) == ("bfloat16", "chooses among experts")
    assert tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"].scheme.startswith("int4")


@pytest.mark.parametrize("algorithm", ["gptq", "gptaq", "qronos"])
def test_threads_make_no_difference(algorithm: str, text: str, tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", "qwen2_moe")
    recipe = recipe_of(f"algorithm={algorithm}", "allow=[damping_raised]")
    before, files = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            quantize_checkpoint(model, tmp_path / f"{threads}", recipe, text)
            files.append((tmp_path / f"{threads}" / "model.safetensors").read_bytes())
    finally:
        torch.set_num_threads(before)
    assert files[0] == files[1]


def test_stacked_experts_give_the_same_checkpoint(text: str, tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", "mixtral")
    stacked = stack_experts(model, tmp_path / "stacked")
    for source, output in ((model, "a"), (stacked, "b")):
        quantize_checkpoint(source, tmp_path / output, recipe_of(), text)
    one, other = (open_checkpoint(tmp_path / name) for name in ("a", "b"))
    assert sorted(one.raw_names()) == sorted(other.raw_names())
    for name in one.raw_names():
        assert one.load_raw(name).tobytes() == other.load_raw(name).tobytes(), name


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_transformers_loads_every_expert(family: str, text: str, tmp_path: Path) -> None:
    """It computes code times scale in bfloat16: at most half a unit in the last place away."""
    import transformers

    model = tiny_checkpoint(tmp_path / "model", family)
    quantize_checkpoint(model, tmp_path / "out", recipe_of(), text)
    ours = open_checkpoint(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    state = {n: p.float().numpy(force=True) for n, p in theirs.named_parameters()}
    names = EXPERT_NAMES[family]
    for number in range(4):
        prefix = f"model.layers.1.{names.block}.experts.{number}"
        loaded = state["model.layers.1.mlp.experts.gate_up_proj"][number]
        for leaf, matrix in zip((names.gate, names.up), np.split(loaded, 2), strict=True):
            value = ours.load(f"{prefix}.{leaf}.weight")
            assert isinstance(value, QuantizedTensor)
            expected = value.dequantize()
            assert np.all(np.abs(matrix - expected) <= 2.0**-8 * np.abs(expected))


@pytest.mark.parametrize("algorithm", ["gptq", "gptaq"])
def test_samples_that_do_not_fit_pass_in_waves(algorithm: str, text: str, tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", "qwen3_moe", layers=1)
    more = (f"algorithm={algorithm}", "calibration.samples=40", "calibration.memory_mib=1")
    assert plan_quantization(model, recipe_of(*more)).samples_per_batch < 40
    modules = modules_of(quantize_checkpoint(model, tmp_path / "out", recipe_of(*more), text))
    gates = [m.tokens for n, m in modules.items() if ".experts." in n and n.endswith("gate_proj")]
    assert sum(gates) == CHOSEN * 40 * 24


def test_a_run_that_was_cut_off_ends_in_the_same_bytes(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_checkpoint(tmp_path / "model", "mixtral")
    quantize_checkpoint(model, tmp_path / "whole", recipe_of(), text)
    rounded, honest = list[int](), LayerLoop.round_layer

    def once(loop: LayerLoop, index: int) -> LayerResult:
        rounded.append(index)
        if len(rounded) == 2:
            raise KeyboardInterrupt
        return honest(loop, index)

    monkeypatch.setattr(LayerLoop, "round_layer", once)
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(model, tmp_path / "out", recipe_of(), text)
    quantize_checkpoint(model, tmp_path / "out", recipe_of(), text, resume=True)
    assert rounded == [0, 1, 1]
    one, other = (tmp_path / name / "model.safetensors" for name in ("whole", "out"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_what_was_written_opens_as_a_model(family: str, text: str, tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", family)
    quantize_checkpoint(model, tmp_path / "out", recipe_of(), text)
    opened = open_model(tmp_path / "out")
    check_weights(opened.program, opened.weights)
    schemes = {str(op.scheme) for op in opened.program.projections() if ".experts." in op.weight}
    assert schemes == {"int4-sym-g32"}


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("least", [1, 60])
def test_statistics_are_those_of_the_oracle(
    share: float, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H of each linear, in float64: (n H_own + k H_layer) / (n + k), where n tokens are the
    expert's own and k are missing; a first token counts for (share / (1 - share)) * others."""
    random = torch.Generator().manual_seed(0)
    length, hidden = 12, 32
    experts = Experts(
        Expert(hidden, 16, torch.nn.functional.silu, EXPERT_NAMES["qwen3_moe"], torch.float32)
        for _ in range(3)
    )
    for name, parameter in experts.named_parameters():
        set_parameter(experts, name, torch.randn(parameter.shape, generator=random))
    inputs = torch.randn(4 * length, hidden, generator=random)
    index = torch.stack([torch.arange(4 * length) % 2, torch.full((4 * length,), 2)], dim=1)
    batches = [
        RoutedBatch(inputs[part], None, index[part], length)
        for part in (slice(0, 2 * length), slice(2 * length, None))
    ]
    scheme = IntScheme(4, True, PerGroup(16))
    tasks = [name.removesuffix(".weight") for name in experts.state_dict()]
    block = ExpertBlock(
        "mlp.experts", experts, None, {n: LinearTask(n, scheme, "gptq") for n in tasks}
    )
    weights = {f"mlp.experts.{n}": experts.get_parameter(f"{n}.weight").clone() for n in tasks}
    seen: dict[str, StageMoments] = {}

    def spy(tasks: Any, weights: Any, moments: StageMoments, *others: Any) -> Any:
        seen.update((task.module, moments) for task in tasks)
        return round_stage(tasks, weights, moments, *others)

    monkeypatch.setattr("quant.expert_stage.round_stage", spy)
    settings = RoundingSettings(
        first_token_share=share,
        expert_min_tokens=least,
        allowed=frozenset({"shared_statistics", "damping_raised"}),
    )
    with fixed_division() as workers, torch.no_grad():
        stage = ExpertStage(block, length, weights.__getitem__, settings, workers)
        stage._batches += batches
        stage.round()

    for number, expert in enumerate(experts):
        assert isinstance(expert, Expert)
        own = (index == number).any(1).numpy()
        counts = np.ones(4 * length)
        counts[::length] = max(share / (1 - share) * (length - 1), 1.0)
        counts = counts * own + max(least - own.sum(), 0) / len(own)
        for leaf, rows in (("up_proj", inputs), ("down_proj", expert.inner(inputs))):
            x = rows.double().numpy(force=True)
            expected = (x.T * counts) @ x / counts.sum()
            got = seen[f"{number}.{leaf}"]
            # float32 sums of 48 products of numbers below 2**10
            np.testing.assert_allclose(got.hessian.numpy(), expected, rtol=1e-4, atol=1e-3)
            assert (got.tokens, got.shared) == (own.sum(), own.sum() < least)
