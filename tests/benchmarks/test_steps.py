"""The parts of the steps that compute: rescaling, importance, and the check of a reader."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.quality.steps.importance import mean_squares
from benchmarks.quality.steps.read_transformers import check_activations, round_by_hand
from benchmarks.quality.steps.rescale import LOG_RANGE, rescale
from tests.tiny import tiny_checkpoint

TOKENS = torch.tensor([[5, 3, 200, 17, 42, 9]])


def load(directory: Path, **options: Any) -> Any:
    path = tiny_checkpoint(directory, dtype="float32", **options)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@torch.no_grad()
def test_rescaling_keeps_the_function_and_moves_every_linear(family: str, tmp_path: Path) -> None:
    """qwen2 has biases at q, k and v; both have two query heads to a cached one."""
    model = load(tmp_path / "model", family=family)
    before, logits = dict(model.state_dict()), model(TOKENS).logits
    before = {name: weight.clone() for name, weight in before.items()}
    rescale(model, 3)
    # float32 products in another order: some hundred roundings of 6e-8, of logits of about one.
    assert float((model(TOKENS).logits - logits).abs().max()) < 1e-4 * float(logits.abs().max())
    for name, weight in model.state_dict().items():
        if "_proj.weight" in name:
            factor = weight / before[name]
            assert float(factor.std()) > 0.1, name
            assert float(factor.log().abs().max()) < 3 * LOG_RANGE, name


def test_seeds_differ_and_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    models = [load(tmp_path / "model") for _ in range(3)]
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    for model, seed in zip(models, (0, 0, 1), strict=True):
        rescale(model, seed)
    assert torch.rand(1) == expected
    first, same, other = (model.model.layers[0].mlp.up_proj.weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@torch.no_grad()
def test_importance_is_the_mean_square_of_what_a_linear_is_given(tmp_path: Path) -> None:
    model = load(tmp_path / "model")
    samples = torch.tensor([[5, 3, 200, 17], [42, 9, 8, 7]])
    found = mean_squares(model, samples)
    layers = model.config.num_hidden_layers
    assert len(found) == 7 * layers
    # What the first layer's query sees: the norm of the embeddings, no attention before it.
    normed = model.model.layers[0].input_layernorm(model.model.embed_tokens(samples))
    expected = normed.double().square().mean(dim=(0, 1)).numpy()
    np.testing.assert_allclose(found["blk.0.attn_q.weight"], expected, rtol=1e-5)
    down = found[f"blk.{layers - 1}.ffn_down.weight"]
    assert down.shape == (model.config.intermediate_size,)


class Rounding(torch.nn.Linear):
    """A linear that rounds its inputs by `rule` and says that they are rounded to int8 by token."""

    def __init__(self, rule: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(64, 48)
        self.rule = rule
        tokens = SimpleNamespace(strategy="token", symmetric=True, num_bits=8, type="int")
        self.quantization_scheme = SimpleNamespace(input_activations=tokens)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.rule(x))


def by_token(x: torch.Tensor) -> torch.Tensor:
    scale = 2 * x.abs().max(dim=-1, keepdim=True).values / 255
    return torch.clamp(torch.round(x / scale), -128, 127) * scale


def by_tensor(x: torch.Tensor) -> torch.Tensor:
    scale = 2 * x.abs().max() / 255
    return torch.clamp(torch.round(x / scale), -128, 127) * scale


def test_a_reader_that_rounds_as_told_passes() -> None:
    check_activations(torch.nn.Sequential(torch.nn.Linear(4, 4), Rounding(by_token)))
    check_activations(torch.nn.Sequential(torch.nn.Linear(4, 4)))


@pytest.mark.parametrize(
    ("rule", "problem"), [(lambda x: x, "ignored"), (by_tensor, "otherwise than by hand")]
)
def test_a_reader_that_does_not_is_found_out(
    rule: Callable[[torch.Tensor], torch.Tensor], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        check_activations(torch.nn.Sequential(Rounding(rule)))


def test_fp8_by_hand_keeps_what_e4m3_holds() -> None:
    rule = SimpleNamespace(strategy="token", symmetric=True, num_bits=8, type="float")
    x = torch.tensor([[448.0, 1.125, 0.0625, -17.0]])
    rounded = round_by_hand(x, rule)
    assert rounded is not None
    # Three bits behind the point: 17 lies between 16 and 18, and ties go to the even one.
    assert rounded.tolist() == [[448.0, 1.125, 0.0625, -16.0]]
