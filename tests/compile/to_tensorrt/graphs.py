"""Both graphs of tiny models, and ONNX Runtime to run them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from compile.model import Model
from compile.onnx_contract import GRAPH_FILE
from compile.onnx_proto import Graph, encode_graph, read_graph
from compile.to_onnx.build import build_model
from compile.to_tensorrt.experts import with_all_rows
from compile.to_tensorrt.halves import in_halves
from tests.tiny import tiny_model

HALVES = "halves.onnx"
PAGE = 4


@dataclass(frozen=True)
class Graphs:
    """The portable graph and the one for TensorRT, over the same weights in `directory`."""

    directory: Path
    model: Model
    portable: Graph
    halves: Graph


def both_graphs(directory: Path, family: str = "llama", **options: Any) -> Graphs:
    return graphs_of(directory, tiny_model(family, **options))


def graphs_of(directory: Path, model: Model) -> Graphs:
    build_model(model, directory, "fp8", version="test")
    portable = read_graph(directory / GRAPH_FILE, constants=True)
    halves = in_halves(with_all_rows(portable))
    (directory / HALVES).write_bytes(encode_graph(halves, "test"))
    return Graphs(directory, model, portable, halves)


def run_in_two_steps(graphs: Graphs, name: str, tokens: list[int]) -> npt.NDArray[np.float32]:
    """float32 [T, vocab]: the last two tokens read the first ones' keys from pages."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    options.log_severity_level = 4
    path = str(graphs.directory / name)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ports = graphs.halves.inputs if name == HALVES else graphs.portable.inputs
    pools = {
        port.name: np.zeros((8, PAGE, *map(int, port.shape[2:])), port.dtype)
        for port in ports
        if port.shape[0] == "N"
    }
    names = [port.name for port in session.get_outputs()]
    logits = []
    for start, end in ((0, len(tokens) - 2), (len(tokens) - 2, len(tokens))):
        found = dict(
            zip(names, session.run(names, _feeds(tokens, start, end) | pools), strict=True)
        )
        logits.append(found["logits"])
        for pool, pages in pools.items():
            rows = pages[1:].reshape(-1, *pages.shape[2:])
            rows[start:end] = found[pool.replace("pool", "new")]
    return np.concatenate(logits)


def _feeds(tokens: list[int], start: int, end: int) -> dict[str, npt.NDArray[np.int64]]:
    rows = np.arange(end - start)
    return {
        "token_ids": np.array(tokens[start:end]),
        "positions": np.arange(start, end),
        "query_rows": rows[None],
        "query_lengths": np.array([end - start]),
        "token_places": rows,
        "past_lengths": np.array([start]),
        "page_table": np.arange(1, 2 + max(0, start - 1) // PAGE)[None],
        "logit_rows": rows,
    }
