"""Folding keeps the function, whatever type the checkpoint stores its norms and biases in."""

from collections.abc import Collection

import pytest
import torch

from quant.format.errors import UnsupportedModelError
from quant.transforms.fold import FoldedLayer
from quant.transforms.layouts import layout_of
from quant.transforms.points import FoldPoint, fold_points
from tests.quant.transforms.families import FAMILIES, random_tokens, split_model

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def linears(layer: torch.nn.Module) -> list[str]:
    return [n for n, m in layer.named_modules() if isinstance(m, torch.nn.Linear)]


def fold_randomly(
    layer: torch.nn.Module, family: str, dtype: torch.dtype, kept: Collection[str] = ()
) -> tuple[FoldedLayer, dict[FoldPoint, torch.Tensor]]:
    """Every point of `layer` moved by random scales between about 1/20 and 20."""
    random = torch.Generator().manual_seed(3)
    layout = layout_of(family)
    stored = {name: dtype for name, _ in layer.named_parameters()}
    rounded = [name for name in linears(layer) if name not in kept]
    folded, moved = FoldedLayer(layer, rounded, stored, layout.offset), {}
    for point in fold_points(layer, layout, 8):
        scale = torch.exp(torch.randn(point.channels, generator=random))
        moved[point] = folded.storable(point, scale)
        folded.apply(point, moved[point])
    return folded, moved


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_stay_though_norms_are_rounded_to_their_type(
    family: str, dtype: torch.dtype
) -> None:
    """A norm stored in bfloat16 loses bits when it is divided; its readers must make up for that.
    The bound is float32's: about 20 roundings of numbers near 1 in each of two layers."""
    model = split_model(family).to(dtype).double()
    tokens = random_tokens()
    before = model(tokens).logits
    for layer in model.model.layers:
        folded, moved = fold_randomly(layer, family, dtype)
        assert any((scale - 1).abs().max() > 1 for scale in moved.values())
        for name, value in folded.written.items():
            assert value.dtype == dtype, name
            assert torch.equal(value.double(), layer.get_parameter(name)), name
        producers = {point.producer for point in moved}
        experts = sum(".experts." in name for name in producers)
        assert experts == (4 if family in ("mixtral", "qwen3_moe") else 0)
        others = {"phi3": 2, "mixtral": 3, "qwen3_moe": 3}.get(family, 4)
        assert len(producers) == experts + others
    lost = (model(tokens).logits - before).abs().max()
    assert lost <= 100 * torch.finfo(torch.float32).eps
    assert before.std() > 0.5


def test_scales_are_those_asked_for_up_to_the_rounding_of_what_is_stored() -> None:
    """Half a step of bfloat16, relative to the value: eps / 2 of the power of two below it."""
    layer = split_model("llama").to(torch.bfloat16).float().model.layers[0]
    stored = {name: torch.bfloat16 for name, _ in layer.named_parameters()}
    folded = FoldedLayer(layer, linears(layer), stored)
    for point in fold_points(layer, layout_of("llama"), 8):
        scale = torch.linspace(0.5, 2.0, point.channels)
        moved = folded.storable(point, scale)
        assert ((moved / scale - 1).abs() <= torch.finfo(torch.bfloat16).eps).all()
        assert not torch.equal(moved, scale)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("kept", ["self_attn.k_proj", "mlp.down_proj", "self_attn.v_proj"])
def test_what_stays_in_16_bit_is_scaled_by_powers_of_two(kept: str, dtype: torch.dtype) -> None:
    model = split_model("llama").to(dtype).double()
    tokens = random_tokens()
    before = model(tokens).logits
    for layer in model.model.layers:
        folded, moved = fold_randomly(layer, "llama", dtype, kept=[kept])
        touched = [p for p in moved if kept in (*p.readers, p.producer)]
        assert touched
        for point in touched:
            mantissa, _ = torch.frexp(moved[point])
            assert (mantissa == 0.5).all()
        assert folded.written[f"{kept}.weight"].dtype == dtype
        assert kept not in folded.weights
    assert (model(tokens).logits - before).abs().max() <= 100 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_gains_of_zero_and_results_out_of_range_do_no_harm(family: str) -> None:
    """Half a gain of the smallest normal number cannot be stored: such a channel stays."""
    model = split_model(family).half()
    layer = model.model.layers[0].float()
    gain = layer.get_parameter("input_layernorm.weight")
    offset = layout_of(family).offset
    gain[:3] = torch.tensor([0.0, 6.2e-5, 6.0e4]) - float(offset)
    gain.copy_(gain.half())
    stored = {name: torch.float16 for name, _ in layer.named_parameters()}
    folded = FoldedLayer(layer, linears(layer), stored, offset)
    point = fold_points(layer, layout_of(family), 8)[0]
    scale = torch.full((point.channels,), 2.0)
    scale[2] = 0.125
    moved = folded.storable(point, scale)
    assert moved[2] == 1.0
    assert offset or moved[1] == 1.0
    folded.apply(point, moved)
    assert torch.isfinite(layer.get_parameter("input_layernorm.weight")).all()
    assert torch.isfinite(folded.weights["self_attn.q_proj"]).all()


def test_query_heads_of_one_value_head_share_its_scales() -> None:
    layer = split_model("llama").model.layers[0]
    point = next(p for p in fold_points(layer, layout_of("llama"), 8) if p.kind == "heads")
    assert (point.channels, point.repeats) == (16, 2)
    columns = torch.arange(32.0)
    expected = [
        (8 * (2 * head) + i + 8 * (2 * head + 1) + i) / 2 for head in (0, 1) for i in range(8)
    ]
    assert point.gather(columns).tolist() == expected
    assert point.gather(columns, largest=True).tolist() == [e + 4 for e in expected]
    spread = point.spread(torch.arange(16.0)).reshape(4, 8)
    assert torch.equal(spread[0], spread[1])
    assert torch.equal(spread[2], spread[3])
    assert not torch.equal(spread[1], spread[2])


def test_unknown_families_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'olmo2'.*llama"):
        layout_of("olmo2")
