"""The layer loop against a plain loop over the whole model, for several families."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from quant.format.errors import CheckFailedError
from quant.format.scheme import IntScheme, PerGroup
from quant.format.tensor import Weight, WeightSource
from quant.layers import LayerLoop
from quant.preflight import Prepared, prepare
from quant.recipe import load_recipe
from quant.rounding_algorithms.correction import corrected_weight
from quant.rounding_algorithms.factor import factor
from quant.rounding_algorithms.result import Rounded
from quant.skeleton import to_torch
from quant.tasks import Algorithm, LinearTask, RoundingSettings
from quant.workers import fixed_division
from tests.tiny import tiny_checkpoint

FAMILIES = [
    ("llama", {"tied": True}),
    ("llama", {"tied": False, "bias": True}),
    ("qwen2", {"tied": False}),
    ("qwen3", {"tied": True}),
    ("mistral", {"sliding_window": 8}),
    ("gemma2", {"tied": True}),
    ("gemma3_text", {"tied": True}),
    ("phi3", {"sliding_window": 8}),
]
SETTINGS = RoundingSettings(first_token_share=0.0)


def sample_tokens(samples: int = 6, length: int = 24) -> torch.Tensor:
    return torch.randint(3, 384, (samples, length), generator=torch.Generator().manual_seed(0))


def open_tiny(directory: Path, family: str, dtype: str = "float32", **options: Any) -> Prepared:
    model = tiny_checkpoint(directory / "model", family, dtype=dtype, **options)
    return prepare(model, load_recipe("w4a16", ["scheme.group_size=32"]))


def run(
    prepared: Prepared,
    tokens: torch.Tensor,
    batch: int = 99,
    *,
    tasks: Mapping[str, LinearTask] | None = None,
    source: WeightSource | None = None,
    settings: RoundingSettings = SETTINGS,
    threads: int | None = None,
    after_layer: Callable[[], None] = lambda: None,
) -> dict[str, Rounded]:
    results: dict[str, Rounded] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with fixed_division() as workers:
            loop = LayerLoop(
                prepared.skeleton,
                source or prepared.source,
                tasks or prepared.resolution.tasks,
                settings,
                batch,
                workers,
            )
            loop.start(tokens)
            for index in range(len(prepared.skeleton.layers)):
                results |= loop.round_layer(index).rounded
                after_layer()
    finally:
        torch.set_num_threads(before)
    return results


@pytest.mark.parametrize(("family", "options"), FAMILIES)
def test_activations_carried_forward_equal_the_model_with_rounded_weights(
    tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    """The last stage's relative output error, from statistics gathered along the way, must be what
    a whole model holding every rounded weight measures at that very linear."""
    import transformers

    prepared = open_tiny(tmp_path, family, **options)
    tokens = sample_tokens()
    results = run(prepared, tokens)
    assert results.keys() == prepared.resolution.tasks.keys()
    whole = transformers.AutoModelForCausalLM.from_pretrained(
        prepared.source.path, dtype=torch.float32, attn_implementation="eager"
    )
    for module, result in results.items():
        whole.get_submodule(module).weight.data.copy_(result.dequantized)
    seen: dict[str, torch.Tensor] = {}
    for module in results:
        whole.get_submodule(module).register_forward_pre_hook(
            lambda _, args, module=module: seen.__setitem__(module, args[0])
        )
    with torch.no_grad():
        whole(tokens)
    for module, result in results.items():
        inputs = seen[module].reshape(-1, seen[module].shape[-1])
        original = to_torch(prepared.source.load_raw(f"{module}.weight")).float()
        lost = inputs @ (original - result.dequantized).T
        error = float(lost.norm() / (inputs @ original.T).norm())
        assert result.output_error == pytest.approx(error, rel=1e-3), module
        assert result.state == "as asked"


@pytest.mark.parametrize("batch", [99, 4])
@pytest.mark.parametrize("algorithm", ["gptq", "gptaq"])
def test_any_number_of_threads_gives_the_same_bits(
    tmp_path: Path, algorithm: Literal["gptq", "gptaq"], batch: int
) -> None:
    prepared = open_tiny(tmp_path, "llama", dtype="bfloat16")
    tasks = {n: replace(t, algorithm=algorithm) for n, t in prepared.resolution.tasks.items()}
    tokens = sample_tokens(samples=300, length=16)
    one, *others = (
        run(prepared, tokens, batch * 3, tasks=tasks, threads=threads) for threads in (1, 2, 3)
    )
    for other in others:
        for module, result in one.items():
            assert np.array_equal(result.tensor.codes, other[module].tensor.codes)
            assert result.tensor.scale.tobytes() == other[module].tensor.scale.tobytes()
            assert result.output_error == other[module].output_error


def test_an_error_inside_a_layer_reaches_the_caller(tmp_path: Path) -> None:
    """Forwards run on threads of their own: none may be left waiting, nor its error be lost."""
    prepared = open_tiny(tmp_path, "llama")
    threads = threading.active_count()

    def broken(*_: Any) -> None:
        raise RuntimeError("broken on purpose")

    prepared.skeleton.layers[1].get_submodule("mlp.act_fn").register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        run(prepared, sample_tokens())
    assert threading.active_count() == threads


@pytest.mark.parametrize(("family", "options"), [FAMILIES[0], FAMILIES[2]])
def test_batches_change_sums_only(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    """Replaying in batches finds the same stages and, up to the order of sums, the same error."""
    prepared = open_tiny(tmp_path, family, **options)
    whole = run(prepared, sample_tokens())
    batched = run(prepared, sample_tokens(), batch=4)
    for module, result in whole.items():
        assert batched[module].output_error == pytest.approx(result.output_error, rel=0.02)


def test_one_layer_is_loaded_at_a_time_and_each_tensor_once(tmp_path: Path) -> None:
    prepared = open_tiny(tmp_path, "llama", layers=4)
    source, skeleton = prepared.source, prepared.skeleton
    loads: list[str] = []
    most_real = 0

    class Counting:
        def load(self, name: str) -> Weight:
            nonlocal most_real
            loads.append(name)
            real = [layer for layer in skeleton.layers if not _all_meta(layer)]
            most_real = max(most_real, len(real))
            return source.load(name)

        names, shape, scheme = source.names, source.shape, source.scheme

    def nothing_stays() -> None:
        assert _all_meta(skeleton.model)

    run(prepared, sample_tokens(), source=Counting(), after_layer=nothing_stays)
    assert most_real == 1
    assert len(loads) == len(set(loads))
    assert set(loads) == set(source.names()) - {"lm_head.weight"}


def _all_meta(module: torch.nn.Module) -> bool:
    return all(parameter.is_meta for parameter in module.parameters())


def test_statistics_come_from_rounded_producers(tmp_path: Path) -> None:
    """With layer 0 ignored, layer 1 sees other inputs than behind a rounded layer 0."""
    prepared = open_tiny(tmp_path, "llama")
    both = run(prepared, sample_tokens())
    only = {n: t for n, t in prepared.resolution.tasks.items() if ".1." in n}
    alone = run(prepared, sample_tokens(), tasks=only)
    assert alone.keys() == only.keys()
    module = "model.layers.1.self_attn.q_proj"
    assert not np.array_equal(alone[module].tensor.codes, both[module].tensor.codes)


def test_raised_damping_ends_the_run_unless_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An indefinite Hessian, as broken statistics give it, needs more than the damping asked."""
    from quant.statistics import InputMoments

    honest = InputMoments.hessian

    def indefinite(self: InputMoments) -> torch.Tensor:
        hessian = honest(self)
        lowest = torch.linalg.eigvalsh(hessian)[0]
        mean = hessian.diagonal().mean()
        shifted: torch.Tensor = hessian - torch.eye(len(hessian)) * (lowest + 0.03 * mean)
        return shifted

    monkeypatch.setattr(InputMoments, "hessian", indefinite)
    prepared = open_tiny(tmp_path, "llama", layers=1)
    with pytest.raises(CheckFailedError, match=r"q_proj: damping raised to 0\.0[48]"):
        run(prepared, sample_tokens())
    tolerant = RoundingSettings(allowed=frozenset({"damping_raised"}))
    results = run(prepared, sample_tokens(), settings=tolerant)
    states = {result.state for result in results.values()}
    assert all(state.startswith("damping raised to ") for state in states)


def test_an_unusable_hessian_is_a_loud_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quant.statistics import InputMoments

    def broken(self: InputMoments) -> torch.Tensor:
        return -torch.eye(len(self._sum)) + 2 * torch.diag(
            (torch.arange(len(self._sum)) == 0) * 9.0
        )

    monkeypatch.setattr(InputMoments, "hessian", broken)
    prepared = open_tiny(tmp_path, "llama", layers=1)
    with pytest.raises(CheckFailedError, match="fallback rtn: not positive definite"):
        run(prepared, sample_tokens())


def test_corrected_targets_bring_the_stream_closer(tmp_path: Path) -> None:
    """Behind the last layer, the residual stream of a model rounded to 3 bits is nearer to that of
    the model itself when targets make up for what earlier layers lost."""
    prepared = open_tiny(tmp_path, "llama", layers=4)
    tokens = sample_tokens(samples=96, length=32)
    scheme = IntScheme(3, True, PerGroup(32))
    lost = {}
    algorithms: tuple[Algorithm, ...] = ("gptq", "gptaq", "qronos")
    for algorithm in algorithms:
        tasks = {
            name: replace(task, scheme=scheme, algorithm=algorithm)
            for name, task in prepared.resolution.tasks.items()
        }
        results = run(prepared, tokens, tasks=tasks)
        lost[algorithm] = stream_error(prepared, results, tokens)
    assert lost["gptaq"] < 0.95 * lost["gptq"]
    assert lost["qronos"] < 0.95 * lost["gptq"]


def stream_error(prepared: Prepared, results: Mapping[str, Rounded], tokens: torch.Tensor) -> float:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        prepared.source.path, dtype=torch.float32
    )
    with torch.no_grad():
        exact = model.model(tokens, output_hidden_states=True).hidden_states[-1]
        for module, result in results.items():
            model.get_submodule(module).weight.data.copy_(result.dequantized)
        rounded = model.model(tokens, output_hidden_states=True).hidden_states[-1]
    return float((rounded - exact).norm() / exact.norm())


def test_the_target_of_a_correction_is_the_least_squares_one() -> None:
    """Against NumPy's own solver, over more tokens than columns and with hardly any damping."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((400, 12))
    y = x + 0.1 * generator.standard_normal((400, 12))
    drift = 0.1 * generator.standard_normal((400, 5))
    weight = generator.standard_normal((5, 12))
    expected = np.linalg.lstsq(x, y @ weight.T + drift, rcond=None)[0].T
    hessian = torch.from_numpy(x.T @ x / 400).float()
    got = corrected_weight(
        torch.from_numpy(weight).float(),
        torch.from_numpy((y - x).T @ x / 400).float(),
        torch.from_numpy(drift.T @ x / 400).float(),
        factor(hessian, 1e-7, True),
        1.0,
    )
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-4)
