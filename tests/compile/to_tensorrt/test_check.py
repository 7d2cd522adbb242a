"""What TensorRT's parser gets wrong without a word is found before an engine is built."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compile.onnx_proto import Attribute, Graph, Node, Port, encode_graph
from compile.to_tensorrt.api import BuildApi, Network
from compile.to_tensorrt.check import check_network
from quant.format.errors import CheckFailedError, UnsupportedModelError

KEYS = ("B", 2, "S", 16)


def attention(**options: Any) -> SimpleNamespace:
    named = SimpleNamespace(name="NONE")
    plain: dict[str, Any] = {
        "causal_kind": named, "mask": "mask", "key_value_lengths": None, "query_lengths": None
    }  # fmt: skip
    return SimpleNamespace(**plain | options)


@dataclass
class Answers:
    """A network that is as the graph has it, unless it is told otherwise."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=lambda: {"x": (-1,), "n": (-1,)})
    made: list[str] = field(default_factory=lambda: ["y"])
    read: set[str] = field(default_factory=lambda: {"x", "n", "inner"})
    shaping: list[str] = field(default_factory=list)
    attending: list[Any] = field(default_factory=lambda: [attention(), attention()])

    def inputs(self) -> dict[str, tuple[int, ...]]:
        return self.shapes

    def outputs(self) -> list[str]:
        return self.made

    def consumed(self) -> set[str]:
        return self.read

    def values_used_as_shapes(self) -> list[str]:
        return self.shaping

    def attentions(self) -> list[Any]:
        return self.attending


def check(answers: Answers) -> None:
    check_network(answers, {"x", "n"}, {"y"}, 2)


def test_a_network_as_the_graph_has_it_passes() -> None:
    check(Answers())


UPPER_LEFT = SimpleNamespace(name="UPPER_LEFT")
LOWER_RIGHT = SimpleNamespace(name="LOWER_RIGHT")


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        (Answers(read={"x", "inner"}), "dropped the input n"),
        (Answers(shapes={"x": (-1,)}), "other inputs \\(n\\)"),
        (Answers(made=["y", "z"]), "other outputs"),
        (Answers(shaping=["n"]), "the input n decide shapes"),
        (Answers(attending=[attention()]), "1 attentions instead of 2"),
        (Answers(attending=[attention(), attention(causal_kind=UPPER_LEFT)]), "UPPER_LEFT"),
        (Answers(attending=[attention(causal_kind=LOWER_RIGHT), attention()]), "LOWER_RIGHT"),
        (Answers(attending=[attention(), attention(mask=None)]), "lost its mask"),
        (Answers(attending=[attention(key_value_lengths="n"), attention()]), "lengths of its own"),
        (Answers(attending=[attention(query_lengths="n"), attention()]), "lengths of its own"),
    ],
)
def test_a_network_that_means_something_else_is_refused(answers: Answers, problem: str) -> None:
    with pytest.raises(CheckFailedError, match=problem):
        check(answers)


def attending(*inputs: str, **attributes: Attribute) -> Graph:
    """A graph of one attention over inputs of halves."""
    ports = [Port("q", "float16", ("B", 4, "Q", 16)), Port("k", "float16", KEYS)]
    ports += [Port("v", "float16", KEYS)]
    known = {
        "mask": Port("mask", "bool", ("B", 1, "Q", "S")),
        "lengths": Port("lengths", "int64", ("B",)),
    }
    node = Node("Attention", ("q", "k", "v", *inputs), ("y",), attributes)
    used = (*ports, *(known[name] for name in inputs if name))
    return Graph(used, (Port("y", "float16", ("B", 4, "Q", 16)),), (node,), ())


def parsed(graph: Graph, directory: Path) -> Network:
    pytest.importorskip("tensorrt_rtx", reason="the extra 'tensorrt' is not installed")
    (directory / "model.onnx").write_bytes(encode_graph(graph, "test"))
    return BuildApi(here=False).parse(directory / "model.onnx")


def names(graph: Graph) -> set[str]:
    return {port.name for port in graph.inputs}


def test_a_mask_that_is_data_passes(tmp_path: Path) -> None:
    graph = attending("mask")
    check_network(parsed(graph, tmp_path), names(graph), {"y"}, 1)


def test_lengths_that_the_parser_drops_are_found(tmp_path: Path) -> None:
    graph = attending("mask", "", "", "lengths")
    with pytest.raises(CheckFailedError, match="dropped the input lengths"):
        check_network(parsed(graph, tmp_path), names(graph), {"y"}, 1)


def test_a_causal_attention_is_found(tmp_path: Path) -> None:
    graph = attending(is_causal=1)
    with pytest.raises(CheckFailedError, match="UPPER_LEFT"):
        check_network(parsed(graph, tmp_path), names(graph), {"y"}, 1)


def test_a_shape_that_is_fed_as_data_is_found(tmp_path: Path) -> None:
    inputs = (Port("x", "float16", ("T",)), Port("shape", "int64", (2,)))
    node = Node("Reshape", ("x", "shape"), ("y",))
    graph = Graph(inputs, (Port("y", "float16", ("A", "B")),), (node,), ())
    with pytest.raises(CheckFailedError, match="the input shape decide shapes"):
        check_network(parsed(graph, tmp_path), names(graph), {"y"}, 0)


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_what_the_parser_refuses_names_the_node(
    tmp_path: Path, kind: Callable[[int], np.generic]
) -> None:
    """Integers with zero points, the reason for `compile.to_tensorrt.quantized`."""
    constants = {"w": np.asarray([[kind(3)]]), "z": np.asarray(kind(1)), "s": np.float16(1)}
    dequantize = Node("DequantizeLinear", ("w", "s", "z"), ("d",))
    node = Node("Gemm", ("x", "d"), ("y",))
    ports = Port("x", "float16", ("T", 1)), Port("y", "float16", ("T", 1))
    graph = Graph((ports[0],), (ports[1],), (dequantize, node), ())
    graph = replace(graph, constants={name: np.asarray(value) for name, value in constants.items()})
    with pytest.raises(UnsupportedModelError, match=r"tensorrt_rtx .* does not read .*\(node "):
        parsed(graph, tmp_path)
