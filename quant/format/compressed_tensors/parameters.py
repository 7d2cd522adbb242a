"""What is stored beside the codes: scales, zero points, column order, scales of the inputs."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from quant.format.codec import (
    FLOAT_DTYPES,
    Fault,
    group_index_or_none,
    require_scalar,
    require_shape,
    require_usable_scale,
)
from quant.format.compressed_tensors.args import PACKED, format_of
from quant.format.compressed_tensors.layouts import Codes, LoadedParts, Parts, Stored
from quant.format.packing import pack_signed, packed_words, unpack_signed
from quant.format.scheme import (
    CodebookScheme,
    IntScheme,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantizedScheme,
    scale_shape,
)
from quant.format.tensor import QuantizedTensor

SUFFIXES = (
    *("weight_scale", "weight_zero_point", "weight_g_idx", "weight_global_scale"),
    *("input_scale", "input_global_scale", "input_zero_point"),
)


def scalars_of(scheme: QuantizedScheme) -> dict[str, str]:
    """The scalars that a scheme stores, float32 [1]: field of QuantizedTensor by suffix."""
    nested = isinstance(scheme, CodebookScheme) and scheme.scales == "e4m3"
    scalars = {"weight_global_scale": "global_scale"} if nested else {}
    activation = scheme.activation
    if nested and activation is not None:
        scalars["input_global_scale"] = "input_scale"
    elif activation is not None and not activation.dynamic:
        scalars["input_scale"] = "input_scale"
    return scalars


def encode_parameters(module: str, tensor: QuantizedTensor) -> Stored:
    """Everything but the codes, by suffix."""
    scheme, scale, zero = tensor.scheme, tensor.scale, tensor.zero_point
    if isinstance(scheme.granularity, PerTensor):
        scale, zero = scale.reshape(1), None if zero is None else zero.reshape(1)
    powers = isinstance(scheme, CodebookScheme) and scheme.scales == "e8m0"
    stored: Stored = {"weight_scale": scale.view(np.uint8) if powers else scale}
    if zero is not None:
        packed = format_of(scheme) == PACKED
        stored["weight_zero_point"] = pack_signed(zero, scheme.num_bits, axis=0) if packed else zero
    for suffix, field in scalars_of(scheme).items():
        value = getattr(tensor, field)
        if value is None:
            raise ValueError(f"weight '{module}' ({scheme}) has no {field}")
        stored[suffix] = np.array([value], dtype=np.float32)
    return stored


def check_parameters(scheme: QuantizedScheme, shape: tuple[int, int], parts: Parts) -> None:
    """All parts that the scheme needs are there, in dtypes and shapes that fit; and no others."""
    _check_scale(scheme, shape, parts)
    if not scheme.symmetric:
        _check_zero_point(scheme, shape, parts)
    if "weight_g_idx" in parts.names:
        index = parts.shape("weight_g_idx", "int32", "int64")
        require_shape(index, shape[1:], "weight_g_idx", parts.fault)
    scalars = scalars_of(scheme)
    for suffix in ("weight_global_scale", "input_scale", "input_global_scale"):
        if suffix in scalars:
            require_scalar(parts.shape(suffix, *FLOAT_DTYPES), suffix, parts.fault)
        elif suffix in parts.names:
            raise parts.fault.malformed(f"has '{suffix}', which the config does not speak of")


def _check_scale(scheme: QuantizedScheme, shape: tuple[int, int], parts: Parts) -> None:
    rows, columns = shape
    if isinstance(scheme.granularity, PerGroup) and columns % scheme.granularity.size:
        raise parts.fault.malformed(
            f"{columns} columns do not divide into groups of {scheme.granularity.size}"
        )
    own = {"e4m3": ("float8_e4m3fn",), "e8m0": ("uint8", "float8_e8m0fnu"), "float": FLOAT_DTYPES}
    kind = scheme.scales if isinstance(scheme, CodebookScheme) else "float"
    stored = parts.shape("weight_scale", *own[kind])
    if isinstance(scheme.granularity, PerTensor):
        require_scalar(stored, "weight_scale", parts.fault)
    elif not (isinstance(scheme.granularity, PerChannel) and stored == (rows,)):
        require_shape(stored, scale_shape(scheme, shape), "weight_scale", parts.fault)


def _check_zero_point(scheme: QuantizedScheme, shape: tuple[int, int], parts: Parts) -> None:
    rows, groups = scale_shape(scheme, shape)
    stored = parts.shape("weight_zero_point", "int32", "int8")
    if parts.headers[parts.names["weight_zero_point"]].dtype == np.int32:
        parts.refuse_padded_words(rows, scheme.num_bits)
        rows = packed_words(rows, scheme.num_bits)
    if isinstance(scheme.granularity, PerTensor):
        require_scalar(stored, "weight_zero_point", parts.fault)
    else:
        require_shape(stored, (rows, groups), "weight_zero_point", parts.fault)


def decode_scale(
    scheme: QuantizedScheme, shape: tuple[int, int], part: LoadedParts, fault: Fault
) -> npt.NDArray[Any]:
    """The scales in canonical form, all finite."""
    scale = part("weight_scale").reshape(scale_shape(scheme, shape))
    if scale.dtype == np.uint8:
        scale = scale.view(ml_dtypes.float8_e8m0fnu)
    require_usable_scale(scale, fault)
    return scale


def decode_scalars(scheme: QuantizedScheme, part: LoadedParts, fault: Fault) -> dict[str, float]:
    """global_scale and input_scale of a QuantizedTensor, those that the scheme has."""
    _require_zeros(part.maybe("input_zero_point"), "rounds its inputs symmetrically", fault)
    scalars = {}
    for suffix, field in scalars_of(scheme).items():
        value = float(part(suffix).astype(np.float32).reshape(()))
        if not (np.isfinite(value) and value > 0):
            raise fault.malformed(f"'{suffix}' is {value}, not a positive number")
        scalars[field] = value
    return scalars


def decode_zero_point(
    scheme: QuantizedScheme, shape: tuple[int, int], part: LoadedParts, fault: Fault
) -> npt.NDArray[np.int8] | None:
    """int8 [out, groups], or None where the scheme has none; old writers stored zeros then."""
    stored = part.maybe("weight_zero_point")
    if scheme.symmetric or stored is None:
        _require_zeros(stored, "is symmetric", fault)
        return None
    rows, groups = scale_shape(scheme, shape)
    stored = stored.reshape(-1, groups)
    if stored.dtype == np.int32:
        stored = unpack_signed(stored, scheme.num_bits, rows, axis=0)
    return in_range(stored, scheme, "a zero point", fault)


def _require_zeros(stored: npt.NDArray[Any] | None, claim: str, fault: Fault) -> None:
    if stored is not None and (stored.astype(np.float32) != 0).any():
        raise fault.malformed(f"{claim}, but has zero points that are not 0")


def decode_group_index(
    scheme: QuantizedScheme, part: LoadedParts, fault: Fault
) -> npt.NDArray[np.int32] | None:
    """int32 [in], or None for plain groups, which some writers say by -1."""
    stored = part.maybe("weight_g_idx")
    if stored is None or (stored == -1).all():
        return None
    return group_index_or_none(stored, scheme, fault)


def in_range(codes: Codes, scheme: QuantizedScheme, what: str, fault: Fault) -> Codes:
    """`codes`, all of which the scheme has. Raises FileFormatError otherwise."""
    if isinstance(scheme, IntScheme):
        if int(codes.min()) < scheme.qmin or int(codes.max()) > scheme.qmax:
            raise fault.malformed(f"{what} is outside {scheme.qmin}..{scheme.qmax}")
    elif scheme.codebook == "e4m3" and bool(((codes & np.int8(127)) == 127).any()):
        raise fault.malformed(f"{what} is NaN")
    return codes
