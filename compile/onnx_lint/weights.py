"""Rules about quantized weights: how they lie, and which readers keep them packed."""

from collections.abc import Iterator

from compile.onnx_lint.facts import PRODUCTS, Facts
from compile.onnx_lint.findings import BOTH, ORT, TRT, Said
from compile.onnx_lint.graph import Node, Tensor

SMALLEST_BLOCK, LARGEST_BLOCK = 16, 256
FLOAT8 = "float8"
FLOAT4 = "float4e2m1"


def weight_rules(facts: Facts) -> Iterator[Said]:
    """L3 to L7, L10 and L13."""
    for node in facts.graph.nodes:
        if node.op in PRODUCTS:
            yield from _turned_weight(facts, node)
        if node.op == "MatMulNBits":
            yield from _accuracy(node)
            yield from _blocks(node.label, node.number("block_size", 0), node.number("K", 0))
        if node.op == "DequantizeLinear":
            yield from _zero_points(facts, node)
            yield from _dequantized_blocks(facts, node)
            yield from _four_bit_floats(facts, node)
        if node.op == "Gather":
            yield from _gathered(facts, node)
        yield from _float8(facts, node)


def _turned_weight(facts: Facts, node: Node) -> Iterator[Said]:
    found = facts.dequantized(node.input(1))
    if found is not None and (found[1] or (node.op == "Gemm" and node.number("transB", 0))):
        yield Said(
            "L3",
            "slow",
            ORT,
            node.label,
            "a quantized weight that lies as [out, in] is unpacked whole in every step (85 times "
            "slower): ONNX Runtime fuses only [in, out]",
            "store the codes as [in, out], DequantizeLinear along axis 0, and multiply by MatMul "
            "or Gemm without transB",
        )


def _accuracy(node: Node) -> Iterator[Said]:
    if node.number("bits", 4) == 8 and node.number("accuracy_level", 0) == 0:
        yield Said(
            "L4",
            "slow",
            ORT,
            node.label,
            "MatMulNBits of 8 bits at accuracy level 0 is a hundred times slower on a CPU than at "
            "level 4",
            "set accuracy_level to 4 where inputs may be rounded to int8",
        )


def _zero_points(facts: Facts, node: Node) -> Iterator[Said]:
    codes = facts.stored(node.input(0))
    if codes is None or codes.dtype not in ("uint4", "int4"):
        return
    zero = facts.stored(node.input(2)) if node.input(2) else None
    if codes.dtype == "uint4" or (zero is not None and zero.all_zero is not True):
        yield Said(
            "L5",
            "refused",
            TRT,
            node.label,
            "TensorRT takes 4-bit weights as INT4 without zero points alone, and refuses this one",
            "store code - 8 as INT4 and add the product of the inputs' group sums with "
            "scale * (8 - zero_point)",
        )


def _gathered(facts: Facts, node: Node) -> Iterator[Said]:
    table = node.input(0)
    if facts.dequantized(table) is not None:
        yield Said(
            "L6",
            "slow",
            ORT,
            node.label,
            "the whole table is dequantized in every step before rows are looked up",
            "Gather the codes and their scales first (INT8: ONNX gathers no 4 bits), and "
            "dequantize the rows",
        )
    stored = facts.stored(table)
    if stored is not None and _is_quantized(stored) and _is_dequantized(facts, node):
        yield Said(
            "L6",
            "refused",
            TRT,
            node.label,
            "TensorRT reads a quantized constant by DequantizeLinear alone, and here Gather does",
            "dequantize the table before the Gather for TensorRT (it stays packed), or look rows "
            "up outside the graph",
        )


def _is_quantized(tensor: Tensor) -> bool:
    narrow = ("int8", "uint8", "int4", "uint4", FLOAT4)
    return len(tensor.shape) == 2 and (tensor.dtype in narrow or tensor.dtype.startswith(FLOAT8))


def _is_dequantized(facts: Facts, node: Node) -> bool:
    readers = facts.graph.readers.get(node.outputs[0], []) if node.outputs else []
    return any(reader.op in ("DequantizeLinear", "Cast") for reader in readers)


def _float8(facts: Facts, node: Node) -> Iterator[Said]:
    if node.op in ("DequantizeLinear", "QuantizeLinear"):
        return
    if any(name and facts.dtype(name).startswith(FLOAT8) for name in node.inputs):
        yield Said(
            "L7",
            "refused",
            TRT,
            node.label,
            "TensorRT lets FP8 values be read by DequantizeLinear and by nothing else",
            "dequantize first, or keep the bytes as INT8 (a pool of keys can be one)",
        )


def _dequantized_blocks(facts: Facts, node: Node) -> Iterator[Said]:
    codes, block = facts.stored(node.input(0)), node.number("block_size", 0)
    axis = node.number("axis", 1)
    if codes is None or not block or not -len(codes.shape) <= axis < len(codes.shape):
        return
    yield from _blocks(node.label, block, codes.shape[axis])


def _blocks(label: str, block: int, columns: int) -> Iterator[Said]:
    fix = "use groups of 32 or 128 that divide the inputs"
    if not SMALLEST_BLOCK <= block <= LARGEST_BLOCK or block & (block - 1):
        sentence = (
            f"groups of {block} are none that ONNX Runtime multiplies packed (16, 32, 64, 128 or "
            "256): 512 silently gave zeros in some versions"
        )
        yield Said("L10", "wrong", BOTH, label, sentence, fix)
    elif columns % block:
        sentence = f"groups of {block} do not divide the weight's {columns} inputs"
        yield Said("L10", "refused", BOTH, label, sentence, fix)


def _four_bit_floats(facts: Facts, node: Node) -> Iterator[Said]:
    if facts.dtype(node.input(0)) == FLOAT4:
        yield Said(
            "L13",
            "refused",
            TRT,
            node.label,
            "4-bit floats (NVFP4) need a GPU of compute capability 12.0 or above: engines for "
            "older ones are not built",
            "build for sm120 and above alone, or quantize to INT4 or FP8 for older GPUs",
        )
