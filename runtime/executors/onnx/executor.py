"""The ONNX executor: ONNX Runtime runs the graph, we own the pages."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from compile.from_onnx import OnnxWeights
from compile.model import Model
from compile.onnx_contract import LOGITS, STEP_INPUTS, new_names, pool_names
from compile.onnx_proto import encode_graph, read_graph
from compile.program import Attend, Program
from compile.to_onnx.aliased import aliased
from compile.to_onnx.types import Form
from quant.format.errors import FileFormatError, InputError
from quant.format.scheme import IntScheme, PerGroup
from runtime.engine.batch import StepBatch
from runtime.executors.onnx.pools import (
    Pools,
    ReadingRunner,
    StepRunner,
    WritingRunner,
    writes_in_place,
)
from runtime.executors.onnx.selftest import check_products
from runtime.graph_step import PartOfStep, split
from runtime.machine import available_threads

ACCURACY_LEVEL = "session.qdq_matmulnbits_accuracy_level"
"""How ONNX Runtime multiplies packed integers: 0 keeps inputs in float32, 4 rounds them to int8."""
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""Where the weights of a graph that is handed over as bytes lie."""
FATAL = 4
"""Errors are raised, and need not be printed as well."""


class OnnxExecutor:
    """Implements `runtime.engine.batch.Executor` with ONNX Runtime on the CPU.

    exact: multiply integers by inputs as they are, for comparisons; otherwise ONNX Runtime rounds
    the inputs of quantized linears to int8, which is many times faster. threads: None uses every
    core that this process may use.

    Keys and values are float32, or float16 where the graph is the one of a TensorRT engine. A row's
    numbers depend on who shares its step as far as ONNX Runtime's sums do: their order follows the
    shapes of the step.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_pages: int,
        page_size: int = 32,
        threads: int | None = None,
        exact: bool = False,
    ) -> None:
        assert num_pages > 1 and page_size > 0, "page 0 is reserved: a pool has two pages or more"
        if not isinstance(model.weights, OnnxWeights):
            raise InputError(
                f"{model.path}: is no ONNX artifact; make one with: coldpress build CHECKPOINT "
                "-o DIR --target onnx"
            )
        sizes = model.program.sizes
        self.vocab_size, self.max_positions = sizes.vocab_size, sizes.max_positions
        self.page_size, self.num_pages = page_size, num_pages
        self.threads = threads or available_threads()
        places = {tensor.offset: tensor.nbytes for tensor in model.weights.graph.tensors}
        self.weight_bytes = sum(places.values())
        layers = [op for op in model.program.ops if isinstance(op, Attend)]
        _check_ports(model.weights, layers)
        options = _options(self.threads, exact)
        check_products(_integer_forms(model.program), options, exact)
        types = {port.name: port.dtype for port in model.weights.graph.inputs}
        self._pools = {
            name: np.zeros((num_pages, page_size, op.kv_heads, op.head_dim), types[name])
            for op in layers
            for name in pool_names(op.layer)
        }
        new = [name for op in layers for name in new_names(op.layer)]
        self._runner: StepRunner | None = _runner(model.weights, options, self._pools, new, exact)

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        """Logits, float32 [R, vocab_size]."""
        assert self._runner is not None, "the executor is closed"
        logits = np.empty((len(batch.logit_rows), self.vocab_size), np.float32)
        lengths = np.diff(batch.query_starts).astype(np.int64)
        parts = [PartOfStep(batch, part, self.page_size) for part in split(lengths)]
        for part, rows in zip(parts, self._runner.run(parts), strict=True):
            logits[part.wanted] = rows[: len(part.wanted)]
        return logits

    def close(self) -> None:
        """Frees the session with its weights, and the pool."""
        self._runner = None
        self._pools = {}


def _options(threads: int, exact: bool) -> "onnxruntime.SessionOptions":
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = FATAL
    # Steps come in many shapes, and ONNX Runtime would keep a plan of memory for each of them.
    options.enable_mem_pattern = False
    options.add_session_config_entry(ACCURACY_LEVEL, "0" if exact else "4")
    return options


def _runner(
    weights: OnnxWeights,
    options: "onnxruntime.SessionOptions",
    pools: Pools,
    new: list[str],
    exact: bool,
) -> StepRunner:
    """The graph as it is in the file to compare, and where pools are halves; to serve, the aliased
    one, if this ONNX Runtime can be relied upon to write in place."""
    path = weights.graph_path
    single = all(pool.dtype == np.float32 for pool in pools.values())
    if exact or not single or not writes_in_place(options):
        return ReadingRunner(_session(path, str(path), options), pools, new)
    options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
    graph = aliased(read_graph(path, constants=True))
    return WritingRunner(_session(path, encode_graph(graph, ""), options), pools)


def _session(
    path: Path, graph: str | bytes, options: "onnxruntime.SessionOptions"
) -> "onnxruntime.InferenceSession":
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a class of its own for each status, none of them documented
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileFormatError(
            path, f"is not loaded by onnxruntime {onnxruntime.__version__}: {reason}"
        ) from error


def _integer_forms(program: Program) -> set[Form]:
    """Each kind of packed weight that the graph multiplies by."""
    forms = set()
    for op in program.projections():
        if isinstance(op.scheme, IntScheme):
            grain, dtype = op.scheme.granularity, f"int{op.scheme.num_bits}"
            group = grain.size if isinstance(grain, PerGroup) else 0
            inputs = op.scheme.activation
            forms.add(Form(dtype, "", group, not op.scheme.symmetric, inputs=inputs))
    return forms


def _check_ports(weights: OnnxWeights, layers: list[Attend]) -> None:
    """The graph asks for what its config.json promises, and for nothing else."""
    pools = {name for op in layers for name in pool_names(op.layer)}
    new = {name for op in layers for name in new_names(op.layer)}
    inputs = {port.name for port in weights.graph.inputs}
    outputs = {port.name for port in weights.graph.outputs}
    if inputs != {*STEP_INPUTS, *pools} or outputs != {LOGITS, *new}:
        raise InputError(
            f"{weights.graph_path}: its inputs or outputs are not those of the model that its "
            "config.json describes; build it again"
        )
