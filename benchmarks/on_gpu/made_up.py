"""Models of real shape whose weights are made up as they are asked for."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.on_gpu.sizes import SIZES, Shape
from compile.families import build_program
from compile.model import Model
from compile.program import Program
from quant.format.scheme import (
    ActivationScheme,
    CodebookScheme,
    FloatScheme,
    IntScheme,
    PerBlock,
    PerChannel,
    PerGroup,
    Scheme,
)
from quant.format.tensor import QuantizedTensor, Weight

SCHEMES: Mapping[str, Scheme] = {
    "w4a16": IntScheme(4, True, PerGroup(128)),
    "fp8": CodebookScheme("e4m3", PerChannel(), activation=ActivationScheme("e4m3")),
    "bfloat16": FloatScheme("bfloat16"),
}


def config_of(shape: Shape) -> dict[str, Any]:
    """A llama config of this shape."""
    return {
        "model_type": "llama",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **shape,
    }


@dataclass(frozen=True)
class RandomWeights:
    """A WeightSource that makes each tensor up when it is asked for it."""

    program: Program
    schemes: Mapping[str, Scheme]
    blank: bool = False

    def names(self) -> Collection[str]:
        return self.program.weights()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.program.weights()[name]

    def scheme(self, name: str) -> Scheme:
        return self.schemes.get(name, FloatScheme("bfloat16"))

    def load(self, name: str) -> Weight:
        make = _blank if self.blank else _random
        return make(self.shape(name), self.scheme(name))


@cache
def _random(shape: tuple[int, ...], scheme: Scheme) -> Weight:
    """Equal for weights of one shape: only speed matters."""
    random = np.random.default_rng(len(shape) + shape[0])
    if len(shape) == 1:
        return np.ones(shape, ml_dtypes.bfloat16)
    rows, columns = shape
    size = 1 / np.sqrt(columns)
    if isinstance(scheme, FloatScheme):
        # One row after the other from a short stretch of noise.
        noise = (random.normal(size=columns + 997) * size).astype(ml_dtypes.bfloat16)
        windows = np.lib.stride_tricks.sliding_window_view(noise.view(np.uint16), columns)
        found: Weight = windows[np.arange(rows) % 997].view(ml_dtypes.bfloat16)
        return found
    codes = random.integers(-128, 128, shape, dtype=np.int8)
    groups = scheme.groups(columns)
    scale = np.full((rows, groups), size / 4, ml_dtypes.bfloat16)
    if isinstance(scheme, CodebookScheme):
        bits = codes.view(np.uint8)
        bits[(bits & 0x7F) == 0x7F] = 0  # the two codes for NaN
        return QuantizedTensor(scheme, codes, (scale.astype(np.float32) / 50))
    return QuantizedTensor(scheme, (codes >> 4).astype(np.int8), scale)


def random_model(shape: str, scheme: str) -> Model:
    """A llama of `shape` whose linears are stored in `scheme`, head and embeddings in bfloat16."""
    return model_of(shape, config_of(SIZES.shapes[shape]), SCHEMES[scheme])


def model_of(name: str, config: Mapping[str, Any], stored: Scheme, *, blank: bool = False) -> Model:
    """The same for any family's config. blank: weights are zeros, which takes no time."""

    def scheme_of(name: str) -> Scheme:
        return stored if "_proj" in name else FloatScheme("bfloat16")

    program = build_program(config, scheme_of, lambda name: name == "lm_head.weight")
    schemes = {name: scheme_of(name) for name in program.weights()}
    weights = RandomWeights(program, schemes, blank)
    return Model(Path(name), "huggingface", program, weights, config, None, None)


def _blank(shape: tuple[int, ...], scheme: Scheme) -> Weight:
    if isinstance(scheme, FloatScheme):
        return np.zeros(shape, ml_dtypes.bfloat16)
    rows = shape[0]
    if isinstance(scheme.granularity, PerBlock):
        rows = -(-rows // scheme.granularity.rows)
    scale = np.ones((rows, scheme.groups(shape[1])), ml_dtypes.bfloat16)
    codes = np.zeros(shape, np.int8)
    if isinstance(scheme, CodebookScheme) or scheme.symmetric:
        return QuantizedTensor(scheme, codes, scale)
    if scheme.ggml_type is not None:
        return QuantizedTensor(scheme, codes, scale, minimum=scale.astype(np.float32))
    return QuantizedTensor(scheme, codes, scale, np.zeros(scale.shape, np.int8))
