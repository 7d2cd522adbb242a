"""The rule that gives each tensor its ggml type."""

from compile.gguf_names import EMBEDDINGS, HEAD
from quant.format.errors import UnsupportedModelError
from quant.format.ggml_mix import MIXES
from quant.format.gguf_blocks import lossless_type
from quant.format.gguf_types import BF16, F16, F32, Q4_0, Q4_1, Q5_0, Q8_0, GgmlType
from quant.format.scheme import FloatScheme, QuantizedScheme, Scheme

FLOAT_TYPES = {"f32": F32, "f16": F16, "bf16": BF16}
BLOCK_TYPES = {"q8_0": Q8_0, "q4_0": Q4_0, "q4_1": Q4_1, "q5_0": Q5_0}
MIX_NAMES = {mix.lower(): mix for mix in MIXES if mix.lower() not in BLOCK_TYPES}
TYPE_NAMES = ("auto", *FLOAT_TYPES, *BLOCK_TYPES, *MIX_NAMES)


def choose_type(
    tensor: str,
    name: str,
    scheme: Scheme,
    shape: tuple[int, ...],
    type_name: str,
    quantized: bool,
    mixed: GgmlType | None = None,
) -> tuple[GgmlType, str]:
    """(type, reason in words) of one tensor.

    tensor, name: its GGUF and its Hugging Face name. quantized: whether the checkpoint holds any
    integers; its floats were then left alone on purpose, and only a float type touches them.
    mixed: what a mix of ggml types gives this tensor, where one is asked for, or named by the
    checkpoint, which then leaves it to the build to round its tables.
    """
    if len(shape) == 1:
        return F32, "vectors are F32 in every GGUF file"
    if isinstance(scheme, QuantizedScheme):
        return _quantized_type(name, scheme, shape, type_name, mixed)
    if type_name in FLOAT_TYPES:
        return FLOAT_TYPES[type_name], f"asked for: {type_name}"
    if mixed is not None and (not quantized or tensor in (EMBEDDINGS, HEAD)):
        return mixed, "rounded: as the mix of types has it"
    stored, reason = lossless_type(scheme, shape[1])
    if type_name == "auto":
        return stored, reason
    if quantized:
        return stored, "as stored: the checkpoint left it unquantized"
    if tensor in (EMBEDDINGS, HEAD):
        return _sixteen_bit(scheme), "token tables keep 16 bits"
    kind = BLOCK_TYPES[type_name]
    if shape[1] % kind.block:
        problem = f"rows of {shape[1]} are not whole blocks of {kind.block}"
        return _sixteen_bit(scheme), f"{problem}: 16 bits instead of {type_name}"
    return kind, f"rounded: {type_name}"


def _quantized_type(
    name: str,
    scheme: QuantizedScheme,
    shape: tuple[int, ...],
    type_name: str,
    mixed: GgmlType | None,
) -> tuple[GgmlType, str]:
    kind, reason = lossless_type(scheme, shape[1])
    if type_name in ("auto", kind.name.lower()) or kind == mixed:
        return kind, reason
    if type_name == "f32":
        return F32, "dequantized"
    raise UnsupportedModelError(
        f"tensor '{name}' is {scheme}, which {type_name} cannot hold without loss; {kind} can: "
        f"build with type auto"
    )


def _sixteen_bit(scheme: FloatScheme) -> GgmlType:
    return F16 if scheme.dtype != "bfloat16" else BF16
