"""Searches against slow, obvious ones in NumPy float64, and against the formulas."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from quant.format.scheme import ActivationScheme, IntScheme, PerChannel, PerGroup, PerToken
from quant.tasks import LinearTask, RoundingSettings
from quant.transforms.awq import awq_candidates
from quant.transforms.clip import clip_groups
from quant.transforms.inputs import round_inputs
from quant.transforms.layer import TransformedLayer, transform_layer
from quant.transforms.nearest import Nearest
from quant.transforms.settings import AwqSettings, LayerTransforms, SmoothQuantSettings
from quant.transforms.smoothquant import ALPHAS
from tests.quant.transforms.families import random_tokens, split_model

Wide = npt.NDArray[np.float64]
GROUP = 16
INT4 = IntScheme(4, True, PerGroup(GROUP))
W8A8 = IntScheme(8, True, PerChannel(), ActivationScheme("int8", PerToken()))
SETTINGS = RoundingSettings(first_token_share=0.0, scale_dtype="float32")


class Observed:
    """A tiny model's first layer, what its linears read, and the layer's arguments."""

    def __init__(self, family: str = "llama", **options: Any) -> None:
        from quant.capture import capture_inputs
        from quant.skeleton import Skeleton

        model = split_model(family, **options)
        layers = model.model.layers
        skeleton = Skeleton(model, layers, "model.layers", torch.float32)
        self.hidden, arguments = capture_inputs(skeleton, random_tokens())
        self.layer, self.arguments = layers[0], arguments[0]
        self.family = family
        self.inputs: dict[str, Wide] = {}
        self.linears = [n for n, m in self.layer.named_modules() if isinstance(m, torch.nn.Linear)]
        handles = [self._note(name) for name in self.linears]
        self.output = self.forward(self.layer, self.hidden)
        for handle in handles:
            handle.remove()
        self.before = {n: wide(p) for n, p in self.layer.named_parameters()}

    def forward(self, layer: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = layer(hidden, *self.arguments.args, **self.arguments.kwargs)
        return output

    def _note(self, name: str) -> Any:
        def hook(_: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
            self.inputs[name] = wide(args[0]).reshape(-1, args[0].shape[-1])

        return self.layer.get_submodule(name).register_forward_pre_hook(hook)

    def transform(
        self,
        scheme: IntScheme = INT4,
        settings: RoundingSettings = SETTINGS,
        **transforms: Any,
    ) -> TransformedLayer:
        tasks = {name: LinearTask(f"x.{name}", scheme, "rtn") for name in self.linears}
        asked = LayerTransforms(self.family, 8, **transforms)
        return transform_layer(self.layer, self.forward, self.hidden, tasks, settings, asked, {})


def wide(tensor: torch.Tensor) -> Wide:
    return tensor.detach().double().numpy().copy()


def rounded(weight: Wide, group: int = GROUP, qmax: int = 7) -> Wide:
    """Nearest rounding with scales that clip nothing, stored as float32."""
    groups = weight.reshape(len(weight), -1, group)
    scale = np.abs(groups).max(-1, keepdims=True) / qmax
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32).astype(np.float64)
    codes = np.clip(np.round(groups / scale), -qmax - 1, qmax)
    result: Wide = (codes * scale).reshape(weight.shape)
    return result


def oracle_scales(inputs: Wide, weights: list[Wide], repeats: int = 1) -> dict[str, Wide]:
    """By name: every scale that AWQ tries, 20 ratios with and without the weights' magnitude."""
    mean = np.abs(inputs).mean(0)
    groups = [np.abs(w).reshape(len(w), -1, GROUP) for w in weights]
    relative = np.concatenate(
        [(g / g.max(-1, keepdims=True)).reshape(len(g), -1) for g in groups]
    ).mean(0)
    if repeats > 1:
        mean, relative = (v.reshape(-1, repeats, 8).mean(1).reshape(-1) for v in (mean, relative))
    scales = {"unscaled": np.ones_like(mean)}
    for step in range(20):
        ratio = step / 20
        duo = mean**ratio / (relative ** (1 - ratio) + 1e-4)
        for name, scale in (("awq", mean**ratio), ("awq duo", duo)):
            scale = np.maximum(scale, 1e-4)
            scales[f"{name} {ratio:g}"] = scale / np.sqrt(scale.max() * scale.min())
    return scales


def silu(values: Wide) -> Wide:
    result: Wide = values / (1 + np.exp(-values))
    return result


def chosen_name(text: str) -> str:
    return text.partition(":")[0]


def test_awq_chooses_the_scale_that_a_plain_search_of_the_mlp_finds() -> None:
    seen = Observed()
    p = {n.removeprefix("mlp."): v for n, v in seen.before.items()}
    x = seen.inputs["mlp.gate_proj"]

    def mlp(gate: Wide, up: Wide) -> Wide:
        inner = silu(x @ gate.T + p["gate_proj.bias"]) * (x @ up.T + p["up_proj.bias"])
        return inner @ p["down_proj.weight"].T

    gate, up = p["gate_proj.weight"], p["up_proj.weight"]
    scales = oracle_scales(x, [gate, up])
    errors = {
        name: np.mean((mlp(rounded(gate * s) / s, rounded(up * s) / s) - mlp(gate, up)) ** 2)
        for name, s in scales.items()
    }
    best = min(errors, key=errors.__getitem__)
    done = seen.transform(awq=AwqSettings(formula="both"))
    key = "mlp.gate_proj"
    assert chosen_name(done.chosen[key]) == best != "unscaled"
    ratio = float(done.chosen[key].split()[-4])
    assert ratio == pytest.approx(errors[best] / errors["unscaled"], abs=6e-4)
    np.testing.assert_allclose(done.weights["mlp.gate_proj"], gate * scales[best], rtol=2e-6)
    norm = seen.before["post_attention_layernorm.weight"] / scales[best]
    np.testing.assert_allclose(done.written["post_attention_layernorm.weight"], norm, rtol=2e-6)


@pytest.mark.parametrize(
    ("reader", "producer", "repeats"),
    [("self_attn.o_proj", "self_attn.v_proj", 2), ("mlp.down_proj", "mlp.up_proj", 1)],
)
def test_awq_chooses_the_scale_that_a_plain_search_of_a_linear_finds(
    reader: str, producer: str, repeats: int
) -> None:
    seen = Observed()
    x, weight = seen.inputs[reader], seen.before[f"{reader}.weight"]
    scales = oracle_scales(x, [weight], repeats)

    def columns(scale: Wide) -> Wide:
        return np.repeat(scale.reshape(-1, 8), repeats, axis=0).reshape(-1)

    errors = {
        name: np.mean((x @ (rounded(weight * columns(s)) / columns(s) - weight).T) ** 2)
        for name, s in scales.items()
    }
    best = min(errors, key=errors.__getitem__)
    done = seen.transform(awq=AwqSettings(formula="both"))
    assert chosen_name(done.chosen[reader]) == best != "unscaled"
    expected = weight * columns(scales[best])
    np.testing.assert_allclose(done.weights[reader], expected, rtol=1e-5)
    bias = seen.before[f"{producer}.bias"] / scales[best]
    np.testing.assert_allclose(done.written[f"{producer}.bias"], bias, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mixtral"])
@pytest.mark.parametrize("asked", [AwqSettings(ratios=5), SmoothQuantSettings(None, outputs=True)])
def test_the_layer_computes_what_it_did(
    family: str, asked: AwqSettings | SmoothQuantSettings
) -> None:
    seen = Observed(family)
    if isinstance(asked, AwqSettings):
        done = seen.transform(awq=asked)
    else:
        done = seen.transform(W8A8, smoothquant=asked)
    assert done.weights
    assert done.written
    for name, weight in done.weights.items():
        assert torch.equal(seen.layer.get_parameter(f"{name}.weight"), weight)
    after = seen.forward(seen.layer, seen.hidden)
    scale = float(seen.output.abs().max())
    assert float((after - seen.output).abs().max()) <= 60 * torch.finfo(torch.float32).eps * scale


def test_attention_is_scaled_by_its_own_output() -> None:
    """The block around q, k and v, run in float64 as transformers has it, one scale at a time."""
    import copy

    seen = Observed("qwen3")
    x = seen.inputs["self_attn.q_proj"]
    names = [f"{n}_proj.weight" for n in "qkv"]
    weights = [seen.before[f"self_attn.{n}"] for n in names]
    attention = copy.deepcopy(seen.layer.self_attn).double()
    cos, sin = seen.arguments.kwargs["position_embeddings"]

    def run(new: list[Wide]) -> Wide:
        for name, value in zip(names, new, strict=True):
            attention.get_parameter(name).copy_(torch.from_numpy(value))
        inputs = torch.from_numpy(x.reshape(3, 12, -1))
        positions = (cos.double(), sin.double())
        return wide(attention(inputs, position_embeddings=positions, attention_mask=None)[0])

    target, errors = run(weights), {}
    for name, s in oracle_scales(x, weights).items():
        errors[name] = np.mean((run([rounded(w * s) / s for w in weights]) - target) ** 2)
    best = min(errors, key=errors.__getitem__)
    done = seen.transform(awq=AwqSettings(formula="both"))
    key = "self_attn.q_proj"
    assert chosen_name(done.chosen[key]) == best
    assert done.chosen[key].split()[-4] == f"{errors[best] / errors['unscaled']:.3f}"


def test_no_scaling_is_kept_where_nothing_is_better() -> None:
    """Weights that the grid holds exactly: any scale can only lose."""
    seen = Observed()
    exact = torch.randint(-7, 8, (32, 48), generator=torch.Generator().manual_seed(2)) / 8
    exact[:, ::GROUP] = 7 / 8
    seen.layer.mlp.down_proj.weight.copy_(exact)
    done = seen.transform(awq=AwqSettings(formula="both"))
    assert done.chosen["mlp.down_proj"] == "unscaled"
    assert "mlp.down_proj" not in done.weights


def test_the_first_token_counts_for_its_share() -> None:
    """With all weight on it, the choice is that of a calibration set of first tokens alone."""
    many, few = Observed(), Observed()
    done = many.transform(
        settings=replace(SETTINGS, first_token_share=0.999999), awq=AwqSettings(formula="both")
    )
    x = few.inputs["mlp.down_proj"].reshape(3, 12, -1)
    weight = few.before["mlp.down_proj.weight"]
    scales = oracle_scales(x.reshape(-1, 48), [weight])
    errors = {
        name: np.mean((x[:, 0] @ (rounded(weight * s) / s - weight).T) ** 2)
        for name, s in scales.items()
    }
    best = min(errors, key=errors.__getitem__)
    assert chosen_name(done.chosen["mlp.down_proj"]) == best


def test_smoothing_follows_the_formula() -> None:
    seen = Observed()
    done = seen.transform(W8A8, smoothquant=SmoothQuantSettings(0.8))
    x = seen.inputs["mlp.gate_proj"]
    weights = [seen.before[f"mlp.{n}_proj.weight"] for n in ("gate", "up")]
    most = np.abs(np.concatenate(weights)).max(0)
    scale = np.abs(x).max(0) ** 0.8 / most**0.2
    norm = seen.before["post_attention_layernorm.weight"] / scale
    np.testing.assert_allclose(done.written["post_attention_layernorm.weight"], norm, rtol=2e-6)
    np.testing.assert_allclose(done.weights["mlp.up_proj"], weights[1] * scale, rtol=2e-6)
    assert "mlp.down_proj" not in done.weights


def test_alpha_is_searched_with_inputs_rounded_too() -> None:
    seen = Observed()
    x, weight = seen.inputs["mlp.down_proj"], seen.before["mlp.down_proj.weight"]
    errors = {}
    for name in ("unscaled", *(f"smoothquant alpha {a:g}" for a in ALPHAS)):
        scale = np.ones(48)
        if name != "unscaled":
            alpha = float(name.split()[-1])
            scale = np.abs(x).max(0) ** alpha / np.abs(weight).max(0) ** (1 - alpha)
        step = np.abs(x / scale).max(-1, keepdims=True) / 127
        output = (np.round(x / scale / step) * step) @ rounded(weight * scale, 48, 127).T
        errors[name] = float(np.mean((output - x @ weight.T) ** 2))
    done = seen.transform(W8A8, smoothquant=SmoothQuantSettings(None, outputs=True))
    best = min(errors, key=errors.__getitem__)
    assert chosen_name(done.chosen["mlp.down_proj"]) == best


def test_query_heads_share_the_largest_input_when_smoothing() -> None:
    seen = Observed()
    done = seen.transform(W8A8, smoothquant=SmoothQuantSettings(0.5, outputs=True))
    x, weight = seen.inputs["self_attn.o_proj"], seen.before["self_attn.o_proj.weight"]
    largest = [np.abs(v).max(0).reshape(2, 2, 8).max(1).reshape(-1) for v in (x, weight)]
    scale = np.sqrt(largest[0] / largest[1])
    bias = seen.before["self_attn.v_proj.bias"] / scale
    np.testing.assert_allclose(done.written["self_attn.v_proj.bias"], bias, rtol=2e-6)


def test_clipping_minimises_each_groups_part_of_the_sum() -> None:
    random = np.random.default_rng(0)
    weight, x = random.standard_t(3, (5, 32)), random.standard_normal((40, 32))
    nearest = Nearest({"w": LinearTask("w", INT4, "rtn")}, SETTINGS)
    got = clip_groups("w", torch.from_numpy(weight).float(), torch.from_numpy(x).float(), nearest)
    expected = weight.copy()
    for row in range(5):
        for start in (0, 16):
            group, part = weight[row, start : start + 16], x[:, start : start + 16]
            least = np.inf
            for step in range(10):
                bound = np.abs(group).max() * (1 - step / 20)
                clipped = np.clip(group, -bound, bound)
                error = ((part @ (rounded(clipped[None])[0] - group)) ** 2).sum()
                if error < least:
                    least, expected[row, start : start + 16] = error, clipped
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert (expected != weight).any()


def test_clipping_spares_queries_and_keys() -> None:
    seen = Observed()
    done = seen.transform(awq=AwqSettings(ratios=1, formula="plain", clip=True))
    clipped = {name for name, how in done.chosen.items() if how.endswith("clipped")}
    assert clipped == set(seen.linears) - {"self_attn.q_proj", "self_attn.k_proj"}
    for name in clipped:
        before = torch.from_numpy(seen.before[f"{name}.weight"]).float()
        assert (done.weights[name].abs() <= before.abs()).all()


def test_duo_chooses_which_scales_are_tried() -> None:
    mean, relative = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5, 0.25, 0.5])
    plain = awq_candidates(mean, relative, AwqSettings(ratios=4, formula="plain"))
    duo = awq_candidates(mean, relative, AwqSettings(ratios=4, formula="duo"))
    both = awq_candidates(mean, relative, AwqSettings(ratios=4, formula="both"))
    assert list(plain) == ["awq 0.25", "awq 0.5", "awq 0.75"]
    assert list(duo) == [f"awq duo {r}" for r in ("0", "0.25", "0.5", "0.75")]
    assert both.keys() == plain.keys() | duo.keys()
    assert torch.allclose(plain["awq 0.5"], torch.tensor([0.5**0.5, 1.0, 2**0.5]))


def test_channels_that_nothing_ever_reaches_do_not_spoil_the_rest() -> None:
    scales = awq_candidates(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]), AwqSettings())
    assert all(torch.isfinite(s).all() and (s > 0).all() for s in scales.values())


def test_inputs_are_rounded_by_token_group_or_tensor() -> None:
    x = torch.tensor([[1.0, 0.5, 0.26, 0.0], [127.0, 1.6, -127.0, 0.2], [0.0, 0.0, 0.0, 0.0]])
    token = round_inputs(x, ActivationScheme("int8", PerToken()))
    assert torch.equal(token[1], torch.tensor([127.0, 2.0, -127.0, 0.0]))
    assert torch.equal(token[2], torch.zeros(4))
    assert float(token[0, 2]) == pytest.approx(33 / 127)
    e4m3 = round_inputs(x * 448, ActivationScheme("e4m3", PerToken()))
    assert e4m3[0].tolist() == pytest.approx([448.0, 224.0, 120.0, 0.0])
    e2m1 = round_inputs(x, ActivationScheme("e2m1", PerGroup(2)))
    assert e2m1[0].tolist() == pytest.approx([1.0, 0.5, 0.26, 0.0])
