"""Who writes new keys and values into the pools: we, after the graph, or the graph itself."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from compile.onnx_contract import LOGITS, PAGE_TABLE
from compile.onnx_proto import Graph, Port, encode_graph
from compile.to_onnx.aliased import WRITE_SLOTS, written_name
from compile.to_onnx.nodes import Nodes
from runtime.graph_step import PartOfStep

Array = npt.NDArray[Any]
Pools = Mapping[str, Array]
"""[pages, page_size, kv_heads, head_dim] by name, in the order of the graph's outputs."""


class StepRunner(Protocol):
    """Runs a step and sees to it that its keys and values are in the pools."""

    def run(self, parts: Sequence[PartOfStep]) -> list[npt.NDArray[np.float32]]:
        """Of each part, the logits [R, vocab_size] that it asks for."""
        ...


class ReadingRunner:
    """Of the portable graph, which only reads pools: a step that fails has written nothing."""

    def __init__(
        self, session: "onnxruntime.InferenceSession", pools: Pools, new: Sequence[str]
    ) -> None:
        self._session, self._pools = session, pools
        self._outputs = [LOGITS, *new]

    def run(self, parts: Sequence[PartOfStep]) -> list[npt.NDArray[np.float32]]:
        found = [self._session.run(self._outputs, {**part.inputs, **self._pools}) for part in parts]
        for part, (_, *new) in zip(parts, found, strict=True):
            for pool, values in zip(self._pools.values(), new, strict=True):
                pool.reshape(-1, *pool.shape[2:])[part.slots] = values
        return [rows for rows, *_ in found]


class WritingRunner:
    """Of the aliased graph: each pool's buffer is bound as input and output, once and for all.

    A step that fails may have written rows of its own tokens, which nobody has been told of.
    """

    def __init__(self, session: "onnxruntime.InferenceSession", pools: Pools) -> None:
        self._session = session
        self._page_size = next(iter(pools.values())).shape[1]
        self._binding = session.io_binding()
        for name, pool in pools.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(pool.reshape(*pool.shape[:2], -1))
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(written_name(name), value)

    def run(self, parts: Sequence[PartOfStep]) -> list[npt.NDArray[np.float32]]:
        return [self._run(part) for part in parts]

    def _run(self, part: PartOfStep) -> npt.NDArray[np.float32]:
        slots = np.stack(np.divmod(part.slots, self._page_size), axis=1)
        inputs = {**part.inputs, PAGE_TABLE: part.own_pages, WRITE_SLOTS: slots}
        for name, values in inputs.items():
            self._binding.bind_cpu_input(name, values)
        self._binding.bind_output(LOGITS, "cpu")
        self._session.run_with_iobinding(self._binding)
        # Outputs come in the order in which they were bound: the pools, then the logits.
        rows: npt.NDArray[np.float32] = self._binding.get_outputs()[-1].numpy()
        return rows


def writes_in_place(options: "onnxruntime.SessionOptions") -> bool:
    """Whether the installed ONNX Runtime writes into a buffer that is bound as input and output,
    and touches nothing else of it: it does, and does not promise it."""
    nodes = Nodes()
    nodes.add("ScatterND", "pool", WRITE_SLOTS, "rows", out=written_name("pool"))
    shape = ("N", "P", 2)
    graph = Graph(
        (Port("pool", "float32", shape), *_row_ports()),
        (Port(written_name("pool"), "float32", shape),),
        tuple(nodes.nodes),
        (),
    )
    session = onnxruntime.InferenceSession(
        encode_graph(graph, ""), options, providers=["CPUExecutionProvider"]
    )
    pool = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    expected, binding = pool.copy(), session.io_binding()
    value = onnxruntime.OrtValue.ortvalue_from_numpy(pool)
    binding.bind_ortvalue_input("pool", value)
    binding.bind_ortvalue_output(written_name("pool"), value)
    for page, offset in ((2, 1), (3, 2)):
        row = np.full((1, 2), 100.0 * page, np.float32)
        expected[page, offset] = row
        binding.bind_cpu_input(WRITE_SLOTS, np.array([[page, offset]]))
        binding.bind_cpu_input("rows", row)
        session.run_with_iobinding(binding)
    return np.array_equal(pool, expected)


def _row_ports() -> tuple[Port, Port]:
    return Port(WRITE_SLOTS, "int64", ("T", 2)), Port("rows", "float32", ("T", 2))
