"""How large an engine is that holds each weight once, packed as it is stored."""

import math

from compile.onnx_bytes import packed_bytes
from compile.onnx_contract import SCALE_SUFFIX, ZERO_POINT_SUFFIX
from compile.onnx_proto import ExternalTensor, Graph
from quant.format.errors import CheckFailedError

ENGINE_BYTES, NODE_BYTES = 4 << 20, 16 << 10
"""What an engine holds beside weights, however large these are and for however many cards: 1 MB and
9 to 13 KB for each node of the graph were measured."""
FLOATS = ("float32", "float16", "bfloat16")
SHARE = 8
"""Padding of scales and small tensors: one part of this many; seven in a hundred were measured."""


def packed_bytes_of(graph: Graph) -> int:
    """Bytes of all weights in the types that an engine holds them in: integers as they are, their
    scales and all matrices in two bytes, the rest as stored."""
    return sum(_held(tensor) for tensor in graph.tensors)


def _held(tensor: ExternalTensor) -> int:
    scale = tensor.name.endswith(SCALE_SUFFIX)
    matrix = len(tensor.shape) == 2 and tensor.name.endswith(".weight")
    if tensor.name.endswith(ZERO_POINT_SUFFIX) or scale or (matrix and tensor.dtype in FLOATS):
        return 2 * math.prod(tensor.shape)
    return packed_bytes(tensor.dtype, tensor.shape)


def check_size(engine: int, packed: int, nodes: int) -> None:
    """Raises CheckFailedError for an engine that has unpacked or doubled its weights.

    packed: see `packed_bytes_of`. nodes: of the graph it was built from.
    """
    if engine > packed + packed // SHARE + ENGINE_BYTES + NODE_BYTES * nodes:
        raise CheckFailedError(
            f"the engine has {engine:,} bytes and its weights, packed, {packed:,}: TensorRT has "
            "unpacked some of them or holds them twice; report the model, and use --target onnx"
        )
