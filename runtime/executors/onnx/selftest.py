"""Does the installed ONNX Runtime multiply packed integers rightly? Asked each time it is loaded.

It turns DequantizeLinear and Gemm into a product of its own, and versions are known that did so
wrongly for some sizes, without a word. One small product of each kind that a model has takes
milliseconds.
"""

from collections.abc import Iterable

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnxruntime

from compile.onnx_contract import INPUT_SCALE_SUFFIX, SCALE_SUFFIX, ZERO_POINT_SUFFIX
from compile.onnx_proto import Graph, Port, encode_graph
from compile.to_onnx.nodes import Nodes
from compile.to_onnx.types import Form
from compile.to_onnx.weights import WeightNodes
from quant.format.errors import CheckFailedError
from quant.format.rounding import absmax_scale, code_range, quantize_codes
from quant.format.scheme import ActivationScheme, PerGroup

ROWS = (1, 5)
"""One token and several: these are different routines."""
OUT_FEATURES = 24
INPUT_SCALE = 0.02
LEAST_GROUP = 32
"""What ONNX Runtime divides whole rows into."""
Float64 = npt.NDArray[np.float64]


def check_products(
    forms: Iterable[Form], options: "onnxruntime.SessionOptions", exact: bool
) -> None:
    """Raises CheckFailedError naming the form whose product is not what its numbers say.

    exact: whether inputs are multiplied as they are, see `OnnxExecutor`.
    """
    for form in sorted(set(forms), key=str):
        error = worst_error(form, options, exact)
        if not error <= 1:
            raise CheckFailedError(
                f"onnxruntime {onnxruntime.__version__} multiplies {form.dtype} weights in groups "
                f"of {form.group or 'a whole row'} wrongly on this machine; install another "
                "version, or serve with --backend cpu"
            )


def worst_error(form: Form, options: "onnxruntime.SessionOptions", exact: bool) -> float:
    """The largest error of a small product, as a share of what rounding can explain."""
    random = np.random.default_rng(0)
    model, weight = _product(form, random)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for rows in ROWS:
        x = random.standard_normal((rows, len(weight))).astype(np.float32)
        (found,) = session.run(None, {"x": x})
        if form.inputs is not None:
            x = _rounded(x, form.inputs)
        error = np.abs(found - x.astype(np.float64) @ weight)
        share = float((error / _bound(np.abs(x), np.abs(weight), exact)).max())
        worst = max(worst, share) if np.isfinite(share) else np.inf
    return worst


def _rounded(x: npt.NDArray[np.float32], inputs: ActivationScheme) -> npt.NDArray[np.float32]:
    grain = inputs.granularity
    size = grain.size if isinstance(grain, PerGroup) else x.shape[1]
    groups = x.reshape(len(x), -1, size)
    scale = np.float32(INPUT_SCALE)
    if inputs.dynamic:
        scale = absmax_scale(np.abs(groups).max(-1, keepdims=True), 8)
    rounded: npt.NDArray[np.float32] = quantize_codes(groups, scale, None, *code_range(8)) * scale
    return rounded.reshape(x.shape)


def _bound(x: npt.NDArray[np.float32], weight: Float64, exact: bool) -> Float64:
    """float64 [rows, out]. A sum of n terms is off by at most n roundings of the sum of their
    sizes. An input that is rounded to int8 is off by half a step at most, 1/254 of the largest
    input of its group."""
    bound: Float64 = len(weight) * 2.0**-23 * (x.astype(np.float64) @ weight)
    if not exact:
        bound = bound + x.max(1, keepdims=True) / 254 * weight.sum(0)
    return bound


def _product(form: Form, random: np.random.Generator) -> tuple[bytes, Float64]:
    """A model of one linear, and its weight [in, out]."""
    group = form.group or LEAST_GROUP
    columns, bits = 2 * group, 4 if form.dtype == "int4" else 8
    groups = 2 if form.group else 1
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    codes = random.integers(low, high, (columns, OUT_FEATURES), dtype=np.int8)
    scale = random.uniform(0.5, 2.0, (groups, OUT_FEATURES)).astype(np.float32)
    zeros = random.integers(low, high, scale.shape, dtype=np.int8)
    weight = codes.astype(np.float64)
    if form.zero_points:
        weight -= np.repeat(zeros, columns // groups, 0)
    weight *= np.repeat(scale, columns // groups, 0)
    return _model(form, codes, scale, zeros), weight


def _model(
    form: Form,
    codes: npt.NDArray[np.int8],
    scale: npt.NDArray[np.float32],
    zeros: npt.NDArray[np.int8],
) -> bytes:
    stored = ml_dtypes.int4 if form.dtype == "int4" else np.int8
    nodes = Nodes()
    WeightNodes(nodes, {"weight": form}, ()).multiply("x", "weight", None, "y")
    constants = {**nodes.constants, "weight": codes.astype(stored), f"weight{SCALE_SUFFIX}": scale}
    if form.zero_points:
        constants[f"weight{ZERO_POINT_SUFFIX}"] = zeros.astype(stored)
    for suffix in (SCALE_SUFFIX, ZERO_POINT_SUFFIX):
        if not form.group and f"weight{suffix}" in constants:
            constants[f"weight{suffix}"] = constants[f"weight{suffix}"][0]
    if form.inputs is not None and not form.inputs.dynamic:
        constants[f"weight{INPUT_SCALE_SUFFIX}"] = np.array(INPUT_SCALE, np.float32)
    inputs = Port("x", "float32", ("T", len(codes)))
    outputs = Port("y", "float32", ("T", OUT_FEATURES))
    graph = Graph((inputs,), (outputs,), tuple(nodes.nodes), (), constants)
    return encode_graph(graph, "")
