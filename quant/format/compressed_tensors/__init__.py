"""compressed-tensors checkpoints, both ways.

For a module X of shape [out, in] at b bits, each format stores:

    pack-quantized          X.weight_packed      int32 [out, ceil(in*b/32)]
                            X.weight_shape       int64 [2]
    int-quantized           X.weight             int8 [out, in]
    float-, naive-quantized X.weight             float8_e4m3fn [out, in] (naive: also int8)
    mxfp8-quantized         X.weight             float8_e4m3fn [out, in]
    nvfp4-, mxfp4-pack-q.   X.weight_packed      uint8 [out, in/2], even columns in the low nibble

and with it:

    X.weight_scale          float [out, groups], [out, 1], [1] or one per block;
                            nvfp4: float8_e4m3fn; mx: uint8, the exponent plus 127
    X.weight_zero_point     asymmetric only: int32 packed along rows (pack-quantized) or int8
    X.weight_global_scale   float32 [1], nvfp4 only: 448 * 6 / absmax, a divisor
    X.input_scale           float32 [1], where the scale of the activations is stored: a multiplier
    X.input_global_scale    float32 [1], nvfp4 with activations: a divisor

Source: the compressed-tensors package, release 0.20.
"""

from quant.format.compressed_tensors.args import format_of
from quant.format.compressed_tensors.codec import (
    CompressedTensorsCodec,
    encode_weight,
    why_not,
)
from quant.format.compressed_tensors.config import quantization_config

__all__ = [
    "CompressedTensorsCodec",
    "encode_weight",
    "format_of",
    "quantization_config",
    "why_not",
]
