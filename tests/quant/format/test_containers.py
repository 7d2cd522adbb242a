"""Every scheme in every format: held to the byte that was planned, or refused with the fix."""

import itertools
from typing import get_args

import numpy as np
import pytest

from quant.format.containers import CONTAINERS, Format, require_holdable
from quant.format.errors import RecipeError
from quant.format.kv_cache import KvCacheScheme
from quant.format.layout import FloatName, blank_weight, stored_bytes, stored_parts
from quant.format.scheme import CodebookScheme, FloatScheme, IntScheme, PerGroup, QuantizedScheme
from tests.quant.format.random_weights import (
    WEIGHT_ONLY,
    WITH_ACTIVATIONS,
    int_scheme,
    random_weight,
)

INTEGERS: dict[str, QuantizedScheme] = {
    f"int{bits}-{size}-{'sym' if symmetric else 'asym'}": int_scheme(bits, symmetric, size)
    for bits, size, symmetric in itertools.product((2, 3, 4, 5, 6, 8), (None, 32), (True, False))
}
SCHEMES = INTEGERS | WITH_ACTIVATIONS | WEIGHT_ONLY
SHAPES = ((64, 128), (256, 256), (24, 40), (300, 384))
HELD: dict[str, set[str]] = {
    "compressed-tensors": set(SCHEMES),
    "gptq": {name for name in INTEGERS if name[3] in "2348"},
    "gptq_v2": {name for name in INTEGERS if name[3] in "2348"},
    "awq": {"int4-32-sym", "int4-32-asym"},
    "fp8": {"fp8-block", "fp8-static"},
    "ggml": set(),
}


@pytest.mark.parametrize("name", get_args(Format))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_held_takes_the_planned_bytes(name: Format, scheme: str) -> None:
    container, asked = CONTAINERS[name], SCHEMES[scheme]
    held = False
    for shape in SHAPES:
        if container.check(asked, shape):
            continue
        held = True
        own: FloatName = "float32" if isinstance(asked, CodebookScheme) else "float16"
        dtype = np.dtype(container.scale_dtype or own)
        low = container.lowest_zero
        tensor = random_weight(asked, *shape, scale_dtype=dtype, lowest_zero=low)
        stored = sum(array.nbytes for array in container.encode("a", tensor).values())
        assert stored_bytes(name, asked, shape, container.scale_dtype or "float16") == stored
    assert held == (scheme in HELD[name])


@pytest.mark.parametrize("name", get_args(Format))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_many_rows_are_known_from_few(name: Format, scheme: str) -> None:
    """Asked with all of them, the encoder says the same."""
    asked, container = SCHEMES[scheme], CONTAINERS[name]
    for shape in ((1024, 64), (896 + 8, 128), (770, 32)):
        if container.check(asked, shape):
            continue
        stored = container.encode("", blank_weight(asked, shape, "float32"))
        expected = [(part, array.dtype, array.shape) for part, array in stored.items()]
        assert list(stored_parts(name, asked, shape, "float32")) == expected


@pytest.mark.parametrize(
    ("name", "scheme", "shape", "message"),
    [
        ("gptq", WITH_ACTIVATIONS["fp8-dynamic"], (32, 128), "integers: set scheme.type=int"),
        ("gptq", WITH_ACTIVATIONS["w8a8"], (32, 128), "inputs are rounded.*activations=none"),
        ("awq", WITH_ACTIVATIONS["nvfp4"], (32, 128), "integers: set scheme.type=int"),
        ("awq", WITH_ACTIVATIONS["w4a8"], (32, 128), "inputs are rounded.*activations=none"),
        ("gptq", IntScheme(4, True, PerGroup(32), ggml_type="Q4_0"), (32, 128), "only GGUF"),
        ("fp8", int_scheme(8, True, None), (32, 128), "8-bit floats: set scheme.type=fp8"),
        ("fp8", WITH_ACTIVATIONS["fp8-block"], (192, 128), "192 outputs.*ignore it"),
        ("compressed-tensors", WITH_ACTIVATIONS["nvfp4"], (8, 24), "24 columns do not divide"),
        ("compressed-tensors", WITH_ACTIVATIONS["fp8-block"], (8, 64), "64 inputs do not divide"),
    ],
)
def test_refusals_name_the_linear_and_the_fix(
    name: Format, scheme: QuantizedScheme, shape: tuple[int, int], message: str
) -> None:
    with pytest.raises(RecipeError, match=f"m.q_proj: format '{name}' cannot hold it.*{message}"):
        require_holdable(name, {"m.q_proj": (scheme, shape)}, frozenset())


def test_one_scheme_for_all_where_the_config_has_one() -> None:
    block, static = WITH_ACTIVATIONS["fp8-block"], WITH_ACTIVATIONS["fp8-static"]
    modules = {"m.q_proj": (block, (128, 128)), "m.k_proj": (static, (128, 128))}
    require_holdable("compressed-tensors", modules, frozenset())
    with pytest.raises(RecipeError, match=r"m.k_proj: .*m.q_proj is fp8-block.*make them alike"):
        require_holdable("fp8", modules, frozenset())


def test_only_one_format_holds_scales_of_the_kv_cache() -> None:
    holding = {name for name, container in CONTAINERS.items() if container.kv_cache}
    assert holding == {"compressed-tensors"}
    config = CONTAINERS["compressed-tensors"].config(
        {"m.q_proj": int_scheme(4, True, 32), "m.k_proj": FloatScheme("float16")},
        0.01,
        KvCacheScheme("int8"),
    )
    assert config["kv_cache_scheme"]["type"] == "int"
