"""From the words of a recipe to the scheme of a linear."""

from quant.format.errors import RecipeError
from quant.format.ggml_mix import MIXES, ModelFacts, mix_type
from quant.format.gguf_blocks import SCHEMES
from quant.format.scheme import (
    ActivationScheme,
    CodebookScheme,
    Granularity,
    IntScheme,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QuantizedScheme,
)
from quant.recipe import GroupSize, SchemeSpec

_BLOCK = PerBlock(128, 128)
_FP8_GROUP = PerGroup(128)
"""Inputs of a linear whose weights have 128x128 blocks are rounded in runs of 128."""
_FITTING: dict[str, tuple[str, ...]] = {
    "int": ("none", "int8", "int8-static", "fp8", "fp8-static"),
    "fp8": ("none", "fp8", "fp8-static"),
    "nvfp4": ("none", "same"),
    "mxfp4": ("none", "same"),
    "mxfp8": ("none", "same"),
}
"""Inputs that the hardware multiplies with weights of a type."""
_SAME: dict[str, ActivationScheme] = {
    "nvfp4": ActivationScheme("e2m1", PerGroup(16), dynamic=True),
    "mxfp4": ActivationScheme("e2m1", PerGroup(32), dynamic=True),
    "mxfp8": ActivationScheme("e4m3", PerGroup(32), dynamic=True),
}


def scheme_of(spec: SchemeSpec, size: GroupSize) -> QuantizedScheme:
    """The scheme that `spec` asks for with the group size that fits the linear.

    Raises RecipeError for words that do not go together.
    """
    match spec.type:
        case "int":
            return _int_scheme(spec, size)
        case "fp8":
            granularity = _granularity(size)
            if isinstance(granularity, PerGroup):
                raise RecipeError(
                    f"scheme.group_size is {size}, but fp8 weights have one scale per channel, "
                    "tensor or block: set one of these"
                )
            activation = _activation(spec)
            if activation is not None and granularity == _BLOCK:
                if not activation.dynamic:
                    raise RecipeError(
                        "scheme.activations 'fp8-static' is not for fp8 weights in blocks, whose "
                        "inputs are rounded as they come: set fp8"
                    )
                activation = ActivationScheme(activation.numbers, _FP8_GROUP)
            return CodebookScheme("e4m3", granularity, activation=activation)
        case "nvfp4":
            return CodebookScheme("e2m1", PerGroup(16), "e4m3", _activation(spec))
        case "mxfp4":
            return CodebookScheme("e2m1", PerGroup(32), "e8m0", _activation(spec))
        case "mxfp8":
            return CodebookScheme("e4m3", PerGroup(32), "e8m0", _activation(spec))
        case "ggml":
            raise AssertionError("a block type depends on the matrix: see ggml_scheme")


def ggml_scheme(
    spec: SchemeSpec, module: str, columns: int, facts: ModelFacts
) -> QuantizedScheme | None:
    """The block type that a mix, or one type for all, gives a matrix; None where no block of it
    fills the rows. Raises RecipeError for words that do not go together."""
    if spec.ggml_type is None:
        raise RecipeError(
            f"scheme.type 'ggml' needs scheme.ggml_type, one of {', '.join(MIXES)}: set it"
        )
    if spec.activations != "none":
        raise RecipeError("GGUF files cannot say that inputs are rounded: drop scheme.activations")
    kind = mix_type(spec.ggml_type, module, columns, facts)
    return None if kind is None else SCHEMES[kind]


def _int_scheme(spec: SchemeSpec, size: GroupSize) -> IntScheme:
    granularity = _granularity(size)
    if isinstance(granularity, PerBlock):
        raise RecipeError(
            "scheme.group_size 'block' is for type fp8; int takes a number or channel"
        )
    return IntScheme(spec.num_bits, spec.symmetric, granularity, _activation(spec))


def _granularity(size: GroupSize) -> Granularity:
    match size:
        case "channel":
            return PerChannel()
        case "tensor":
            return PerTensor()
        case "block":
            return _BLOCK
        case _:
            return PerGroup(size)


def _activation(spec: SchemeSpec) -> ActivationScheme | None:
    fitting = _FITTING.get(spec.type, ())
    if spec.activations not in fitting:
        raise RecipeError(
            f"scheme.activations '{spec.activations}' does not go with scheme.type '{spec.type}': "
            f"set one of {', '.join(fitting)}"
        )
    match spec.activations:
        case "none":
            return None
        case "same":
            return _SAME[spec.type]
        case "int8":
            return ActivationScheme("int8", PerToken())
        case "fp8":
            return ActivationScheme("e4m3", PerToken())
        case "int8-static":
            return ActivationScheme("int8", PerTensor(), dynamic=False)
        case "fp8-static":
            return ActivationScheme("e4m3", PerTensor(), dynamic=False)
