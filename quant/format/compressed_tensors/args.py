"""The `QuantizationArgs` of compressed-tensors: one object of JSON for each scheme, both ways.

Source: the compressed-tensors package (QuantizationArgs and the presets of its quant_scheme).
"""

from collections.abc import Mapping
from typing import Any, Literal

from quant.format.errors import FileFormatError, UnsupportedModelError
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

PACKED = "pack-quantized"
INT = "int-quantized"
FLOAT = "float-quantized"
NAIVE = "naive-quantized"
NVFP4 = "nvfp4-pack-quantized"
MXFP4 = "mxfp4-pack-quantized"
MXFP8 = "mxfp8-quantized"
FORMATS = (PACKED, INT, FLOAT, NAIVE, NVFP4, MXFP4, MXFP8)

NVFP4_GROUP, MX_GROUP = 16, 32
Numbers = Literal["int8", "e4m3", "e2m1"]
_NUMBERS: Mapping[tuple[object, object], Numbers] = {
    ("int", 8): "int8",
    ("float", 8): "e4m3",
    ("float", 4): "e2m1",
}


def format_of(scheme: QuantizedScheme) -> str:
    """The format that the package and vLLM use for a scheme.

    Integers with integer activations are stored one to a byte, whatever their bits.
    """
    activation = scheme.activation
    if isinstance(scheme, IntScheme):
        return INT if activation is not None and activation.numbers == "int8" else PACKED
    match scheme.codebook, scheme.scales:
        case "e4m3", "float":
            return NAIVE if activation is None else FLOAT
        case "e4m3", "e8m0":
            return MXFP8
        case "e2m1", "e8m0":
            return MXFP4
        case "e2m1", "e4m3":
            return NVFP4
    raise UnsupportedModelError(f"compressed-tensors has no format for {scheme}")


def weight_args(scheme: QuantizedScheme) -> dict[str, Any]:
    """The `weights` of a group of the config."""
    args: dict[str, Any] = {
        "num_bits": scheme.num_bits,
        "type": "int" if isinstance(scheme, IntScheme) else "float",
        "symmetric": scheme.symmetric,
        **_strategy(scheme.granularity),
        "dynamic": False,
    }
    if isinstance(scheme, CodebookScheme) and scheme.scales == "e4m3":
        args |= {"strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"}
    if isinstance(scheme, CodebookScheme) and scheme.scales == "e8m0":
        args["scale_dtype"] = "torch.uint8"
    return args


def activation_args(activation: ActivationScheme | None) -> dict[str, Any] | None:
    """The `input_activations` of a group of the config."""
    if activation is None:
        return None
    args: dict[str, Any] = {
        "num_bits": 4 if activation.numbers == "e2m1" else 8,
        "type": "int" if activation.numbers == "int8" else "float",
        "symmetric": True,
        **_strategy(activation.granularity),
        "dynamic": activation.dynamic,
    }
    match activation.numbers, activation.granularity:
        case "e2m1", PerGroup(16):
            args |= {"strategy": "tensor_group", "dynamic": "local"}
            args["scale_dtype"] = "torch.float8_e4m3fn"
        case "e4m3" | "e2m1", PerGroup(32):
            args["scale_dtype"] = "torch.uint8"
    return args


def _strategy(granularity: Granularity | PerToken) -> dict[str, Any]:
    match granularity:
        case PerTensor():
            return {"strategy": "tensor", "group_size": None}
        case PerToken():
            return {"strategy": "token", "group_size": None}
        case PerChannel():
            return {"strategy": "channel", "group_size": None}
        case PerGroup(size):
            return {"strategy": "group", "group_size": size}
        case PerBlock(rows, columns):
            return {"strategy": "block", "group_size": None, "block_structure": [rows, columns]}


def parse_weights(
    args: Mapping[str, Any], layout: str, activation: ActivationScheme | None, what: str
) -> QuantizedScheme:
    """The scheme of weights stored as `layout`. `what` names the group and its file in errors."""
    if args.get("dynamic"):
        raise UnsupportedModelError(f"{what} does not store its weights quantized (dynamic)")
    if layout not in FORMATS:
        readable = ", ".join(FORMATS)
        raise UnsupportedModelError(f"{what} is stored as {layout!r}; readable are {readable}")
    kind, bits, symmetric = args.get("type", "int"), args.get("num_bits", 8), _symmetric(args, what)
    granularity = _granularity(args, what)
    if kind == "int" and layout in (PACKED, INT, NAIVE):
        if type(bits) is not int or not 2 <= bits <= 8:
            raise FileFormatError(what, f"has num_bits {bits!r}, not 2 to 8")
        if isinstance(granularity, PerBlock):
            raise UnsupportedModelError(f"{what} has integer weights with the strategy 'block'")
        return IntScheme(bits, symmetric, granularity, activation)
    scheme = _float_scheme(bits, granularity, layout, activation) if kind == "float" else None
    if scheme is None or not symmetric:
        raise UnsupportedModelError(
            f"{what} says {layout} of {bits!r}-bit {kind!r} weights, strategy "
            f"{args.get('strategy')!r} and group_size {args.get('group_size')!r}, which is no "
            "combination that can be read"
        )
    return scheme


def _float_scheme(
    bits: object, granularity: Granularity, layout: str, activation: ActivationScheme | None
) -> CodebookScheme | None:
    match layout, bits, granularity:
        case "float-quantized" | "naive-quantized", 8, _:
            return CodebookScheme("e4m3", granularity, activation=activation)
        case "mxfp8-quantized", 8, PerGroup(32):
            return CodebookScheme("e4m3", granularity, "e8m0", activation)
        case "mxfp4-pack-quantized", 4, PerGroup(32):
            return CodebookScheme("e2m1", granularity, "e8m0", activation)
        case "nvfp4-pack-quantized", 4, PerGroup(16):
            return CodebookScheme("e2m1", granularity, "e4m3", activation)
    return None


def parse_activation(args: Mapping[str, Any] | None, what: str) -> ActivationScheme | None:
    """The `input_activations` of a group; None when it leaves inputs alone."""
    if args is None:
        return None
    key = (args.get("type", "int"), args.get("num_bits", 8))
    numbers = _NUMBERS.get(key) if all(isinstance(part, str | int) for part in key) else None
    if numbers is None or not _symmetric(args, what):
        raise UnsupportedModelError(
            f"{what} rounds its inputs to {key[1]!r}-bit {key[0]!r} numbers, symmetric "
            f"{args.get('symmetric', True)!r}; readable are symmetric int8, fp8 and fp4"
        )
    dynamic = args.get("dynamic", False)
    if dynamic not in (True, False, "local"):
        raise FileFormatError(what, f"has dynamic {dynamic!r} for its inputs")
    strategy = args.get("strategy")
    if strategy == "token":
        return ActivationScheme(numbers, PerToken(), bool(dynamic))
    granularity = _granularity(args, what)
    if isinstance(granularity, PerTensor | PerGroup):
        return ActivationScheme(numbers, granularity, bool(dynamic))
    raise UnsupportedModelError(f"{what} has inputs with the strategy {strategy!r}")


def _symmetric(args: Mapping[str, Any], what: str) -> bool:
    symmetric = args.get("symmetric", True)
    if not isinstance(symmetric, bool):
        raise FileFormatError(what, f"has symmetric {symmetric!r}")
    return symmetric


def _granularity(args: Mapping[str, Any], what: str) -> Granularity:
    size, strategy = args.get("group_size"), args.get("strategy")
    if strategy is None:
        strategy = "channel" if size == -1 else "group" if size else "tensor"
    match strategy:
        case "channel":
            return PerChannel()
        case "tensor":
            return PerTensor()
        case "block":
            return PerBlock(*_block(args.get("block_structure"), what))
        case "group" | "tensor_group":
            return PerGroup(_size(size, "group_size", what))
    raise UnsupportedModelError(f"{what} has the unknown strategy {strategy!r}")


def _block(structure: object, what: str) -> tuple[int, int]:
    if not isinstance(structure, list) or len(structure) != 2:
        raise FileFormatError(what, f"has block_structure {structure!r}, not [rows, columns]")
    rows, columns = (_size(size, "block_structure", what) for size in structure)
    return rows, columns


def _size(size: object, key: str, what: str) -> int:
    if type(size) is not int or not 0 < size < 1 << 31:
        raise FileFormatError(what, f"has {key} {size!r}, not a positive number")
    return size
