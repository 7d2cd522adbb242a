"""The words of a recipe and the schemes they ask for."""

import pytest

from quant.format.errors import RecipeError
from quant.format.scheme import (
    ActivationScheme,
    CodebookScheme,
    IntScheme,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantizedScheme,
)
from quant.recipe import GroupSize, SchemeSpec
from quant.schemes import scheme_of

STATIC = ActivationScheme("e4m3", PerTensor(), dynamic=False)
CASES: list[tuple[dict[str, object], GroupSize, QuantizedScheme, str]] = [
    ({"num_bits": 4}, 64, IntScheme(4, True, PerGroup(64)), "int4-sym-g64"),
    (
        {"num_bits": 8, "activations": "int8"},
        "channel",
        IntScheme(8, True, PerChannel(), ActivationScheme("int8")),
        "int8-sym-channel+int8-dynamic-token",
    ),
    (
        {"type": "fp8", "activations": "fp8"},
        "channel",
        CodebookScheme("e4m3", PerChannel(), activation=ActivationScheme("e4m3")),
        "fp8-channel+e4m3-dynamic-token",
    ),
    (
        {"type": "fp8", "activations": "fp8-static"},
        "tensor",
        CodebookScheme("e4m3", PerTensor(), activation=STATIC),
        "fp8-tensor+e4m3-static-tensor",
    ),
    (
        {"type": "fp8", "activations": "fp8"},
        "block",
        CodebookScheme(
            "e4m3", PerBlock(128, 128), activation=ActivationScheme("e4m3", PerGroup(128))
        ),
        "fp8-block128x128+e4m3-dynamic-g128",
    ),
    (
        {"type": "nvfp4", "activations": "same"},
        64,
        CodebookScheme("e2m1", PerGroup(16), "e4m3", ActivationScheme("e2m1", PerGroup(16))),
        "nvfp4+e2m1-dynamic-g16",
    ),
    ({"type": "mxfp4"}, 64, CodebookScheme("e2m1", PerGroup(32), "e8m0"), "mxfp4"),
    (
        {"type": "mxfp8", "activations": "same"},
        64,
        CodebookScheme("e4m3", PerGroup(32), "e8m0", ActivationScheme("e4m3", PerGroup(32))),
        "mxfp8+e4m3-dynamic-g32",
    ),
]


@pytest.mark.parametrize(("words", "size", "scheme", "name"), CASES)
def test_words_and_names(
    words: dict[str, object], size: GroupSize, scheme: QuantizedScheme, name: str
) -> None:
    assert scheme_of(SchemeSpec.model_validate(words), size) == scheme
    assert str(scheme) == name


@pytest.mark.parametrize(
    ("words", "size", "message"),
    [
        ({"type": "fp8"}, 64, "group_size is 64.*channel, tensor or block"),
        ({"type": "int"}, "block", "'block' is for type fp8"),
        ({"type": "int", "activations": "same"}, 64, "does not go with scheme.type 'int'"),
        ({"type": "fp8", "activations": "int8"}, "channel", "set one of none, fp8, fp8-static"),
        ({"type": "nvfp4", "activations": "fp8"}, 64, "set one of none, same"),
        ({"type": "fp8", "activations": "fp8-static"}, "block", "rounded as they come: set fp8"),
    ],
)
def test_words_that_do_not_go_together(
    words: dict[str, object], size: GroupSize, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        scheme_of(SchemeSpec.model_validate(words), size)
