"""The rule that gives each tensor its ggml type."""

from compile.gguf_names import EMBEDDINGS, HEAD
from quant.format.ggml_mix import MIXES, MixedType
from quant.format.gguf_blocks import lossless_type
from quant.format.gguf_types import BF16, F16, F32, MXFP4, Q4_0, Q4_1, Q5_0, Q8_0, GgmlType
from quant.format.scheme import FloatScheme, QuantizedScheme, Scheme

FLOAT_TYPES = {"f32": F32, "f16": F16, "bf16": BF16}
BLOCK_TYPES = {"q8_0": Q8_0, "q4_0": Q4_0, "q4_1": Q4_1, "q5_0": Q5_0, "mxfp4": MXFP4}
MIX_NAMES = {mix.lower(): mix for mix in MIXES if mix.lower() not in BLOCK_TYPES}
TYPE_NAMES = ("auto", *FLOAT_TYPES, *BLOCK_TYPES, *MIX_NAMES)

AGAIN = "rounded again"
"""How the reason of a tensor begins whose integers its type may not hold."""


def choose_type(
    tensor: str,
    name: str,
    scheme: Scheme,
    shape: tuple[int, ...],
    type_name: str,
    quantized: bool,
    mixed: MixedType | None = None,
) -> tuple[GgmlType, str]:
    """(type, reason in words) of one tensor.

    tensor, name: its GGUF and its Hugging Face name. quantized: whether the checkpoint holds any
    integers; its floats were then left alone on purpose, and only a float type touches them.
    mixed: what a mix of ggml types gives this tensor, where one is asked for, or named by the
    checkpoint, which then leaves it to the build to round its tables. What is asked for by name is
    done, though it may round integers again; `auto` never rounds any.
    """
    if len(shape) == 1:
        return F32, "vectors are F32 in every GGUF file"
    if type_name in FLOAT_TYPES:
        return FLOAT_TYPES[type_name], f"asked for: {type_name}"
    stored, reason = lossless_type(scheme, shape[-1])
    if isinstance(scheme, QuantizedScheme):
        if type_name == "auto":
            return stored, reason
        return _asked_of_integers(scheme, shape, stored, reason, mixed or _plain(type_name, shape))
    if mixed is not None and (not quantized or tensor in (EMBEDDINGS, HEAD)):
        return mixed.kind, f"rounded: {mixed_reason(mixed, shape)}"
    if type_name == "auto":
        return stored, reason
    if quantized:
        return stored, "as stored: the checkpoint left it unquantized"
    if tensor in (EMBEDDINGS, HEAD):
        return _sixteen_bit(scheme), "token tables keep 16 bits"
    kind = BLOCK_TYPES[type_name]
    if shape[-1] % kind.block:
        problem = f"rows of {shape[-1]} are not whole blocks of {kind.block}"
        return _sixteen_bit(scheme), f"{problem}: 16 bits instead of {type_name}"
    return kind, f"rounded: {type_name}"


def mixed_reason(mixed: MixedType, shape: tuple[int, ...]) -> str:
    """Why a mix comes to a type, and which it would have been if blocks filled the rows."""
    if mixed.kind == mixed.wanted:
        return "as the mix of types has it"
    short = f"rows of {shape[-1]} are not whole blocks of {mixed.wanted.block}"
    return f"{short}: {mixed.kind} instead of {mixed.wanted}"


def _asked_of_integers(
    scheme: QuantizedScheme,
    shape: tuple[int, ...],
    stored: GgmlType,
    reason: str,
    mixed: MixedType,
) -> tuple[GgmlType, str]:
    if mixed.kind == stored:
        return stored, reason
    holders = _HOLDERS.get(stored, ()) if scheme.ggml_type is None else ()
    how = "the same numbers" if mixed.kind in holders else AGAIN
    return mixed.kind, f"{how}: {mixed_reason(mixed, shape)}"


_HOLDERS = {Q4_0: (Q5_0, Q8_0), Q5_0: (Q8_0,)}
"""Which types hold every integer that these do, each group with a scale of its own."""


def _plain(type_name: str, shape: tuple[int, ...]) -> MixedType:
    kind = BLOCK_TYPES[type_name]
    return MixedType(kind, F16 if shape[-1] % kind.block else kind)


def _sixteen_bit(scheme: FloatScheme) -> GgmlType:
    return F16 if scheme.dtype != "bfloat16" else BF16
