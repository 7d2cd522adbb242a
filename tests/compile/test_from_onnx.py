"""ONNX files of other makers, damaged ones, and weights that are to be read from elsewhere."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.open_model import open_model
from compile.to_onnx.build import build_model
from quant.format.errors import FileFormatError, InputError, MissingExtraError
from tests.runtime.executors.onnx_models import INT4, VERSION
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("built")
    build_model(tiny_model(scheme=INT4, layers=1), directory, version=VERSION)
    return directory


@pytest.fixture
def artifact(built: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(built, tmp_path / "artifact")


def edit(artifact: Path, change: Callable[[Any], None]) -> None:
    model = onnx.load(str(artifact / "model.onnx"), load_external_data=False)
    change(model)
    (artifact / "model.onnx").write_bytes(model.SerializeToString())


def external(model: Any, key: str, value: str, index: int = 0) -> None:
    """Set one entry of where a tensor lies."""
    tensors = [t for t in model.graph.initializer if t.data_location == 1]
    next(entry for entry in tensors[index].external_data if entry.key == key).value = value


def test_an_untouched_copy_opens(artifact: Path) -> None:
    model = open_model(artifact)
    assert (model.kind, model.directory) == ("onnx", artifact)
    assert open_model(artifact / "model.onnx").directory == artifact


def test_a_missing_package_is_named_with_its_extra(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'coldpress\[onnx\]'"):
        open_model(artifact)
    with pytest.raises(MissingExtraError, match=r"pip install 'coldpress\[onnx\]'"):
        build_model(tiny_model(), artifact.parent / "out", version=VERSION)
    assert not (artifact.parent / "out").exists()


@pytest.mark.parametrize(
    "location",
    ["../model.onnx.data", "/etc/passwd", "sub/model.onnx.data", "config.json", "", "a\0b"],
)
def test_weights_lie_beside_the_graph_alone(artifact: Path, location: str) -> None:
    (artifact.parent / "model.onnx.data").write_bytes((artifact / "model.onnx.data").read_bytes())
    edit(artifact, lambda model: external(model, "location", location))
    with pytest.raises(InputError, match=r"beside the graph alone"):
        open_model(artifact)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_are_not_followed(artifact: Path, link: Callable[[Path, Path], None]) -> None:
    data = artifact / "model.onnx.data"
    elsewhere = artifact.parent / "elsewhere"
    data.rename(elsewhere)
    link(elsewhere, data)
    with pytest.raises(InputError, match="link"):
        open_model(artifact)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("offset", "1000000000000", "beyond the end"),
        ("offset", "-4096", "beyond the end"),
        ("length", "1000000000000", "not of its shape's size"),
        ("length", "-1", "not of its shape's size"),
        ("length", "many", "does not say where it lies"),
    ],
)
def test_places_outside_the_file_are_refused(
    artifact: Path, key: str, value: str, problem: str
) -> None:
    edit(artifact, lambda model: external(model, key, value))
    with pytest.raises(FileFormatError, match=problem):
        open_model(artifact)


def test_a_cut_data_file_is_refused(artifact: Path) -> None:
    data = artifact / "model.onnx.data"
    with data.open("r+b") as file:
        file.truncate(data.stat().st_size - 1)
    with pytest.raises(FileFormatError, match="beyond the end"):
        open_model(artifact)


def test_a_missing_data_file_is_named(artifact: Path) -> None:
    (artifact / "model.onnx.data").unlink()
    with pytest.raises(InputError, match=r"weights, model.onnx.data, is missing; copy the file"):
        open_model(artifact)


def test_huge_shapes_take_no_memory(artifact: Path) -> None:
    def grow(model: Any) -> None:
        tensor = next(t for t in model.graph.initializer if t.data_location == 1)
        tensor.dims[:] = [1 << 40, 1 << 20]

    edit(artifact, grow)
    with pytest.raises(FileFormatError, match="not of its shape's size"):
        open_model(artifact)


def test_a_graph_larger_than_any_of_ours_is_refused_at_once(artifact: Path) -> None:
    with (artifact / "model.onnx").open("r+b") as file:
        file.truncate((2 << 30) + 1)
    begin = time.process_time()
    with pytest.raises(FileFormatError, match="is larger than 268,435,456 bytes without weights"):
        open_model(artifact)
    assert time.process_time() - begin < 1


def test_a_graph_of_a_million_nodes_is_refused_before_they_are_made(artifact: Path) -> None:
    """L3. A protobuf that is written twice is the first one with the second one's lists added."""
    more = onnx.ModelProto()
    node = onnx.NodeProto(op_type="Neg", input=["x"], output=["y"])
    more.graph.node.extend([node] * 1000)
    with (artifact / "model.onnx").open("ab") as file:
        file.write(more.SerializeToString() * 1000)
    begin = time.process_time()
    with pytest.raises(FileFormatError, match="has more than 500,000 parts"):
        open_model(artifact)
    # It took a minute and 800 MB to read them all.
    assert time.process_time() - begin < 20


def test_a_pipe_is_not_waited_for(artifact: Path) -> None:
    """L3: opening one to read would wait for somebody to write."""
    data = artifact / "model.onnx.data"
    data.unlink()
    os.mkfifo(data)
    with pytest.raises(InputError, match="what is no plain file"):
        open_model(artifact)


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/stdin"])
def test_devices_are_not_read(artifact: Path, target: str) -> None:
    data = artifact / "model.onnx.data"
    data.unlink()
    data.symlink_to(target)
    with pytest.raises(InputError, match="link"):
        open_model(artifact)


def foreign_domain(model: Any) -> None:
    model.graph.node[3].domain = "com.example"


def nested_graph(model: Any) -> None:
    body = onnx.helper.make_graph([], "body", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=body))


def no_contract(model: Any) -> None:
    del model.metadata_props[:]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (foreign_domain, "operations of 'com.example'; only standard ones are run"),
        (nested_graph, "functions, nested graphs or sparse tensors"),
        (no_contract, "follows no contract that this coldpress knows"),
    ],
)
def test_graphs_of_others_are_refused(
    artifact: Path, change: Callable[[Any], None], problem: str
) -> None:
    edit(artifact, change)
    with pytest.raises(InputError, match=problem):
        open_model(artifact)


@pytest.mark.parametrize("content", [b"not a protobuf", b"\x08", b"\xff" * 100])
def test_random_bytes_are_refused(artifact: Path, content: bytes) -> None:
    (artifact / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.onnx: "):
        open_model(artifact)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_or_mean_the_same_file(built: Path, data: st.DataObject) -> None:
    """Whatever a few flipped bytes or a cut make of the graph: no traceback of another kind."""
    graph = bytearray((built / "model.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        graph[data.draw(st.integers(0, len(graph) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(graph))))
    with TemporaryDirectory() as folder:
        artifact = shutil.copytree(built, Path(folder) / "artifact")
        (artifact / "model.onnx").write_bytes(graph[:cut])
        try:
            weights = open_model(artifact).weights
            for name in weights.names():
                weights.load(name)
        except InputError as error:
            assert str(artifact) in str(error)


SCALE = "model.layers.0.self_attn.q_proj.weight.scale"


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("name", "other.scale", "is int4 and has no scales"),
        ("dims", [64, 2], "do not fit each other"),
        ("dims", [128], "do not fit each other"),
        ("dims", [2, 2, 32], "do not fit each other"),
        ("data_type", onnx.TensorProto.INT8, "not of its shape's size"),
    ],
)
def test_scales_must_fit_their_integers(
    artifact: Path, field: str, value: Any, problem: str
) -> None:
    def change(model: Any) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == SCALE)
        if field == "dims":
            tensor.dims[:] = value
        else:
            setattr(tensor, field, value)

    edit(artifact, change)
    with pytest.raises(FileFormatError, match=problem):
        open_model(artifact)
