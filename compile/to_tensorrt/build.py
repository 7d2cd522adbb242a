"""An engine from the ONNX decoder step that lies in a directory already."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compile.engine_file import ENGINE_FILE, EngineFacts, EngineLimits, ends_sha256
from compile.manifest import file_sha256
from compile.onnx_contract import DATA_FILE, GRAPH_FILE
from compile.onnx_proto import Graph, encode_graph, read_graph
from compile.program import Moe, Program
from compile.to_tensorrt.api import NO_KERNEL, BuildApi, Shapes, Sizes
from compile.to_tensorrt.check import check_network
from compile.to_tensorrt.experts import with_all_rows
from compile.to_tensorrt.halves import in_halves
from compile.to_tensorrt.ranges import check_range
from compile.to_tensorrt.sizes import check_size, packed_bytes_of
from quant.format.errors import UnsupportedModelError
from quant.format.staging import staged_file, write_file_atomically

Progress = Callable[[int, int, str], None]
LONGEST_CONTEXT = 32768
LARGEST_VOLUME = (1 << 31) - 1
"""Elements of one tensor that TensorRT takes."""


@dataclass(frozen=True)
class EngineBuild:
    """What was built, and sentences about it."""

    facts: EngineFacts
    notes: tuple[str, ...]


def engine_limits(program: Program) -> EngineLimits:
    """The model's own context, up to what a profile is sensible for."""
    return EngineLimits(context=min(program.sizes.max_positions, LONGEST_CONTEXT))


def use_halves(directory: Path, version: str) -> None:
    """Put the graph that an engine is built from in the place of the portable one; the weights
    beside it stay as they are."""
    graph = in_halves(with_all_rows(read_graph(directory / GRAPH_FILE, constants=True)))
    write_file_atomically(directory / GRAPH_FILE, encode_graph(graph, version))


def build_engine(
    directory: Path,
    program: Program,
    target: str,
    api: BuildApi,
    cards: tuple[str, ...],
    on_progress: Progress | None = None,
) -> EngineBuild:
    """Write `model.engine` from the graph in `directory`, which `use_halves` has prepared.

    cards: compute capabilities. Raises UnsupportedModelError for what TensorRT refuses, and
    CheckFailedError where it would compute something else or has unpacked the weights.
    """
    limits, graph = engine_limits(program), read_graph(directory / GRAPH_FILE)
    range_notes = check_range(directory, graph)
    if on_progress is not None:
        on_progress(0, 1, ENGINE_FILE)
    sizes = profile_sizes(graph, limits)
    with staged_file(directory / ENGINE_FILE) as aside:
        fused = _build(api, directory / GRAPH_FILE, graph, _shapes(graph, sizes), cards, aside)
        packed = packed_bytes_of(graph)
        check_size(aside.stat().st_size, packed, len(graph.nodes))
    facts = EngineFacts(
        target=target,
        builder=api.name,
        builder_version=api.version,
        cards=cards,
        graph_sha256=file_sha256(directory / GRAPH_FILE),
        data_bytes=(directory / DATA_FILE).stat().st_size,
        limits=limits,
        profile=sizes,
        engine_bytes=(directory / ENGINE_FILE).stat().st_size,
        ends_sha256=ends_sha256(directory / ENGINE_FILE),
        packed_bytes=packed,
    )
    if on_progress is not None:
        on_progress(1, 1, ENGINE_FILE)
    return EngineBuild(facts, (*_notes(program, limits, fused), *range_notes))


def _build(
    api: BuildApi, path: Path, graph: Graph, shapes: Shapes, cards: tuple[str, ...], engine: Path
) -> bool:
    """Whether attention is one kernel. Not for all sizes of heads is there one; only then may
    TensorRT put it together from several."""
    for fused in (True, False):
        network = api.parse(path)
        inputs, outputs = ({p.name for p in ports} for ports in (graph.inputs, graph.outputs))
        attentions = sum(node.op == "Attention" for node in graph.nodes)
        check_network(network, inputs, outputs, attentions)
        for attention in network.attentions():
            attention.decomposable = not fused
        try:
            api.build(network, shapes, cards, engine)
        except UnsupportedModelError as error:
            if not fused or NO_KERNEL not in str(error):
                raise
            continue
        return fused
    raise AssertionError("the second time returns or raises")


def profile_sizes(graph: Graph, limits: EngineLimits) -> dict[str, Sizes]:
    """One profile for decoding and chunks of prompts alike: a second one would hold the weights a
    second time. The usual step is a token of each sequence."""
    pools = [port for port in graph.inputs if port.shape[0] == "N"]
    page = max(limits.page_size * math.prod(map(int, port.shape[2:])) for port in pools)
    usual, pages = limits.sequences, limits.past_pages(limits.page_size)
    return {
        "T": (1, usual, limits.tokens),
        "B": (1, usual, limits.sequences),
        "Q": (1, 1, limits.tokens),
        "M": (1, max(1, pages // 4), limits.past_pages(limits.least_page_size)),
        "R": (1, usual, limits.tokens),
        "N": (2, max(2, usual * pages // 4), LARGEST_VOLUME // page),
        "P": (limits.least_page_size, limits.page_size, limits.page_size),
    }


def _shapes(graph: Graph, sizes: dict[str, Sizes]) -> Shapes:
    return {
        port.name: tuple(  # type: ignore[misc]
            tuple(sizes[d][index] if isinstance(d, str) else d for d in port.shape)
            for index in range(3)
        )
        for port in graph.inputs
    }


def _notes(program: Program, limits: EngineLimits, fused: bool) -> tuple[str, ...]:
    notes = [
        "products and attention are computed in float16, everything else in float32; no GPU was "
        "needed to build the engine, and it has not been run"
    ]
    if limits.context < program.sizes.max_positions:
        notes.append(
            f"the engine takes contexts of {limits.context} tokens, and the model "
            f"{program.sizes.max_positions}"
        )
    if any(isinstance(op, Moe) for op in program.ops):
        notes.append("every expert runs for every token, because TensorRT-RTX has no NonZero")
    if not fused:
        notes.append("TensorRT has no single kernel for attention of these heads; several run")
    return tuple(notes)
