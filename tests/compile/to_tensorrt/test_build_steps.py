"""How an engine is built, with a stand-in for TensorRT: what is asked of it, and in which order."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compile.engine_file import ENGINE_FILE
from compile.onnx_contract import DATA_FILE, GRAPH_FILE
from compile.onnx_proto import read_graph
from compile.to_onnx.build import build_model
from compile.to_tensorrt.api import NO_KERNEL
from compile.to_tensorrt.build import build_engine, use_halves
from quant.format.errors import CheckFailedError, UnsupportedModelError
from quant.format.scheme import IntScheme, PerGroup
from tests.tiny import tiny_model


@dataclass
class StandIn:
    """Both packages' answers. unread: an input that the parser drops. refusals: what building says,
    one after the other, before it works."""

    name: str = "tensorrt"
    version: str = "11.1"
    unread: str | None = None
    refusals: list[str] = field(default_factory=list)
    engine_bytes: int = 1000
    built: list[Any] = field(default_factory=list)

    def parse(self, graph: Path) -> Any:
        found = read_graph(graph)
        shapes = {port.name: tuple(-1 for _ in port.shape) for port in found.inputs}
        attention = {"mask": "m", "key_value_lengths": None, "query_lengths": None}
        kind = SimpleNamespace(name="NONE")
        count = sum(node.op == "Attention" for node in found.nodes)
        layers = [SimpleNamespace(causal_kind=kind, **attention) for _ in range(count)]
        return SimpleNamespace(
            inputs=lambda: shapes,
            outputs=lambda: [port.name for port in found.outputs],
            consumed=lambda: set(shapes) - {self.unread},
            values_used_as_shapes=list,
            attentions=lambda: layers,
        )

    def build(self, network: Any, shapes: Any, cards: Any, engine: Path) -> None:
        may_decompose = {attention.decomposable for attention in network.attentions()}
        self.built.append((may_decompose, shapes, cards))
        if self.refusals:
            raise UnsupportedModelError(self.refusals.pop(0))
        engine.write_bytes(b"e" * self.engine_bytes)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A graph for TensorRT, ready to be built from."""
    build_model(tiny_model(scheme=IntScheme(4, True, PerGroup(32))), tmp_path, version="test")
    use_halves(tmp_path, "test")
    return tmp_path


def built(directory: Path, api: Any) -> Any:
    return build_engine(directory, tiny_model().program, "tensorrt", api, ("sm90",))


def test_one_kernel_for_attention_is_tried_first(directory: Path) -> None:
    api = StandIn()
    found = built(directory, api)
    ((decomposable, shapes, cards),) = api.built
    assert decomposable == {False} and cards == ("sm90",)
    assert shapes["token_ids"] == ((1,), (16,), (256,))
    assert shapes["pool_k.0"][0] == (2, 8, 2, 16) and shapes["pool_k.0"][2][1:] == (32, 2, 16)
    assert shapes["page_table"] == ((1, 1), (16, 2), (16, 32))
    assert (found.facts.builder, found.facts.builder_version) == ("tensorrt", "11.1")
    assert not any("no single kernel" in note for note in found.notes)


def test_several_are_allowed_where_there_is_none(directory: Path) -> None:
    api = StandIn(refusals=[f"attention is {NO_KERNEL}"])
    found = built(directory, api)
    assert [decomposable for decomposable, *_ in api.built] == [{False}, {True}]
    assert any("no single kernel" in note for note in found.notes)


@pytest.mark.parametrize("refusals", [["out of luck"], [NO_KERNEL, "still none"]])
def test_other_refusals_are_passed_on(directory: Path, refusals: list[str]) -> None:
    with pytest.raises(UnsupportedModelError, match=refusals[-1]):
        built(directory, StandIn(refusals=list(refusals)))
    assert not (directory / ENGINE_FILE).exists()


def test_nothing_is_built_from_what_the_parser_changed(directory: Path) -> None:
    api = StandIn(unread="past_lengths")
    with pytest.raises(CheckFailedError, match="dropped the input past_lengths"):
        built(directory, api)
    assert api.built == [] and not (directory / ENGINE_FILE).exists()


def test_an_engine_that_is_too_large_is_not_kept(directory: Path) -> None:
    with pytest.raises(CheckFailedError, match="unpacked some of them or holds them twice"):
        built(directory, StandIn(engine_bytes=30_000_000))
    assert not (directory / ENGINE_FILE).exists()


def test_graphs_and_weights_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        model = tiny_model("mixtral", scheme=IntScheme(4, False, PerGroup(32)))
        build_model(model, tmp_path / name, version="test")
        use_halves(tmp_path / name, "test")
    for file in (GRAPH_FILE, DATA_FILE):
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
