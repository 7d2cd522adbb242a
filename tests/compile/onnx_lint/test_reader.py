"""The reader against the onnx package, and against files that are not what they seem."""

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from compile.onnx_lint import lint, read_onnx, wire
from compile.to_onnx.build import build_model
from quant.format.errors import FileFormatError, InputError
from quant.format.scheme import IntScheme, PerGroup
from tests.compile.onnx_lint.graphs import FLOAT, IN, OUT, array, load, node, save, tensor, value
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("decoder")
    build_model(tiny_model(scheme=IntScheme(4, False, PerGroup(32))), directory, version="0")
    return directory / "model.onnx"


def plain(shape: Any) -> tuple[Any, ...]:
    return tuple(size.dim_param or size.dim_value for size in shape.dim)


def test_a_decoder_is_read_as_onnx_reads_it(decoder: Path) -> None:
    ours, theirs = read_onnx(decoder), load(decoder)
    assert ours.ir_version == theirs.ir_version and ours.producer == "coldpress"
    assert ours.opsets == {item.domain: item.version for item in theirs.opset_import}
    assert ours.metadata == {item.key: item.value for item in theirs.metadata_props}
    assert len(ours.nodes) == len(theirs.graph.node)
    for our, their in zip(ours.nodes, theirs.graph.node, strict=True):
        assert (our.op, our.name, our.domain) == (their.op_type, their.name, their.domain)
        assert our.inputs == tuple(their.input) and our.outputs == tuple(their.output)
        values = {item.name: helper.get_attribute_value(item) for item in their.attribute}
        kept = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        assert our.attributes == kept
    for port, proto in zip(ours.inputs, theirs.graph.input, strict=True):
        kind = proto.type.tensor_type
        code = getattr(TensorProto, {"float32": "FLOAT"}.get(port.dtype, port.dtype.upper()))
        assert (port.name, port.shape) == (proto.name, plain(kind.shape))
        assert code == kind.elem_type
    assert len(ours.tensors) == len(theirs.graph.initializer)
    for proto in theirs.graph.initializer:
        stored = ours.tensors[proto.name]
        assert stored.shape == tuple(proto.dims)
        place = {entry.key: entry.value for entry in proto.external_data}
        if place:
            assert stored.place is not None
            assert (stored.place.location, str(stored.place.offset), str(stored.place.length)) == (
                place["location"],
                place["offset"],
                place["length"],
            )


def test_constants_and_nested_graphs_are_read(tmp_path: Path) -> None:
    zeros = array("", np.zeros(3, np.int64))
    body = helper.make_graph([node("Relu", ["x"], "inner")], "body", [], [value("inner")])
    nodes = [
        node("Constant", [], "three", value=zeros),
        node("If", ["flag"], "y", then_branch=body, else_branch=body),
    ]
    inputs = [value("x"), value("flag", TensorProto.BOOL, ())]
    graph = read_onnx(save(tmp_path / "m.onnx", nodes, inputs, [value("y")]))
    assert [n.op for n in graph.nodes] == ["Constant", "If", "Relu", "Relu"]
    assert graph.tensors["three"].shape == (3,) and graph.tensors["three"].all_zero is True


def test_a_file_larger_than_a_protobuf_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate((2 << 30) + 1)
    begin = time.process_time()
    with pytest.raises(FileFormatError, match=r"larger than a protobuf can be \(2 GB\)"):
        read_onnx(path)
    assert time.process_time() - begin < 1


def test_large_weights_within_a_graph_are_not_loaded(tmp_path: Path) -> None:
    """A gigabyte that is a hole in the file: reading it would take that much memory."""
    size = 1 << 30
    path = save(tmp_path / "m.onnx", [node("Neg", ["x"], "y")], [value("x")], [value("y")])
    graph = bytearray(path.read_bytes())
    head = bytes([0x08, 1, 0x10, 1, 0x4A]) + varint(size)
    inner = bytes([0x2A]) + varint(len(head) + size) + head
    # A second graph would be refused: the tensor is appended to the first one's last field.
    at = graph.index(b"\x3a")
    length, begin = graph[at + 1], at + 2
    assert length < 0x80
    whole = graph[:at] + b"\x3a" + varint(length + len(inner) + size)
    with path.open("wb") as file:
        file.write(whole + graph[begin : begin + length] + inner)
        file.seek(size, 1)
        file.write(graph[begin + length :])
    tracemalloc.start()
    try:
        (stored,) = read_onnx(path).tensors.values()
        assert stored.inline_bytes == size
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def nested(depth: int) -> Any:
    graph = helper.make_graph([], "leaf", [], [])
    for _ in range(depth):
        graph = helper.make_graph([node("If", ["x"], "y", then_branch=graph)], "g", [], [])
    return graph


def many_parts(path: Path) -> None:
    path.write_bytes(b"\x08\x0a" + b"\x10\x01" * (wire.MAX_FIELDS // 100))


def deep(path: Path) -> None:
    model = helper.make_model(nested(20))
    path.write_bytes(model.SerializeToString())


def wide(path: Path) -> None:
    save(path, [node("Neg", ["x" * 100_000], "y")], [value("x")], [value("y")])


def no_place(path: Path) -> None:
    stray = TensorProto(name="w", data_type=FLOAT, data_location=TensorProto.EXTERNAL)
    save(path, [node("Neg", ["x"], "y")], [value("x")], [value("y")], [stray])


def many_dimensions(path: Path) -> None:
    stray = TensorProto(name="w", data_type=FLOAT, dims=[1] * 100)
    save(path, [node("Neg", ["x"], "y")], [value("x")], [value("y")], [stray])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("not a protobuf")


def long_varint(path: Path) -> None:
    path.write_bytes(b"\x08" + b"\xff" * 20)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (many_parts, "more than 1,000 parts"),
        (deep, "nested deeper than 8"),
        (wide, "has a name of 100,000 bytes"),
        (no_place, "tensor w does not say where it lies"),
        (many_dimensions, "a tensor of 65 dimensions|a tensor of 100 dimensions"),
        (empty, "is empty"),
        (text, "is not an ONNX model, or is damaged"),
        (long_varint, "is not an ONNX model, or is damaged"),
    ],
)
def test_malformed_files_are_refused_at_once(
    make: Callable[[Path], None], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    make(path)
    if make is many_parts:
        monkeypatch.setattr(wire, "MAX_FIELDS", 1000)
    begin = time.process_time()
    with pytest.raises(FileFormatError, match=problem) as refusal:
        read_onnx(path)
    assert time.process_time() - begin < 1 and str(path) in str(refusal.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing.onnx: cannot be read"):
        read_onnx(tmp_path / "nothing.onnx")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "m.onnx"
    nodes = [
        node("DequantizeLinear", ["w", "s", "z"], "wf", axis=0, block_size=32),
        node("MatMul", ["x", "wf"], "y"),
    ]
    tensors = [
        tensor("w", TensorProto.INT4, (IN, OUT)),
        array("s", np.ones((2, OUT), np.float32)),
        tensor("z", TensorProto.INT4, (2, OUT)),
    ]
    return save(path, nodes, [value("x")], [value("y", shape=("T", OUT))], tensors)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_or_read(small: Path, data: st.DataObject) -> None:
    graph = bytearray(small.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        graph[data.draw(st.integers(0, len(graph) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(graph))))
    path = small.parent / "damaged.onnx"
    path.write_bytes(graph[:cut])
    try:
        lint(read_onnx(path))
    except InputError as error:
        assert str(path) in str(error)


def test_the_onnx_package_would_read_the_same_small_graph(small: Path) -> None:
    """So that what is damaged above was a graph before."""
    onnx.checker.check_model(str(small))
    assert lint(read_onnx(small)) == []
