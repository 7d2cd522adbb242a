"""A Program as a graph of standard operations, its numbers in float32."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from compile.onnx_contract import (
    CONTRACT,
    CONTRACT_VERSION,
    LOGIT_ROWS,
    LOGITS,
    PART_SUFFIXES,
    POSITIONS,
    STEP_INPUTS,
    TOKEN_IDS,
    new_names,
    pool_names,
)
from compile.onnx_proto import ExternalTensor, Graph, Port
from compile.program import (
    Add,
    Attend,
    Embed,
    GatedAct,
    Linear,
    Logits,
    Moe,
    Op,
    Program,
    RmsNorm,
    Rope,
    RopeSpec,
    SelectRows,
    Slice,
    SumRanks,
)
from compile.to_onnx.attention import AttentionNodes
from compile.to_onnx.experts import add_mixture
from compile.to_onnx.nodes import Nodes
from compile.to_onnx.rope import table_names
from compile.to_onnx.types import Form
from compile.to_onnx.weights import WeightNodes, second_name


def lower(program: Program, forms: Mapping[str, Form], tensors: Sequence[ExternalTensor]) -> Graph:
    """The graph whose weights are `tensors`, in these forms."""
    shared = _looked_up_and_multiplied(program, forms)
    lowering = _Lowering(program, forms, shared)
    for op in program.ops:
        lowering.add(op)
    layers = [op for op in program.ops if isinstance(op, Attend)]
    return Graph(
        inputs=(*_step_inputs(), *_pools(layers)),
        outputs=(_logits(program), *_new_rows(layers)),
        nodes=tuple(lowering.nodes.nodes),
        tensors=(*tensors, *_second_names(tensors, shared)),
        constants=lowering.nodes.constants,
        metadata={CONTRACT: CONTRACT_VERSION, "coldpress.family": program.family},
    )


def _looked_up_and_multiplied(program: Program, forms: Mapping[str, Form]) -> set[str]:
    """Tied tables of integers."""
    looked_up = {op.weight for op in program.ops if isinstance(op, Embed)}
    multiplied = {op.weight for op in program.projections()}
    return {name for name in looked_up & multiplied if forms[name].group is not None}


def _second_names(
    tensors: Sequence[ExternalTensor], shared: Collection[str]
) -> list[ExternalTensor]:
    parts = {f"{name}{suffix}" for name in shared for suffix in ("", *PART_SUFFIXES)}
    return [replace(t, name=second_name(t.name)) for t in tensors if t.name in parts]


def _step_inputs() -> list[Port]:
    return [Port(name, "int64", shape) for name, shape in STEP_INPUTS.items()]


def _pools(layers: Sequence[Attend]) -> list[Port]:
    return [
        Port(name, "float32", ("N", "P", op.kv_heads, op.head_dim))
        for op in layers
        for name in pool_names(op.layer)
    ]


def _new_rows(layers: Sequence[Attend]) -> list[Port]:
    return [
        Port(name, "float32", ("T", op.kv_heads, op.head_dim))
        for op in layers
        for name in new_names(op.layer)
    ]


def _logits(program: Program) -> Port:
    return Port(LOGITS, "float32", ("R", program.sizes.vocab_size))


class _Lowering:
    """Values of the Program keep their names in the graph."""

    def __init__(
        self, program: Program, forms: Mapping[str, Form], shared: Collection[str]
    ) -> None:
        self.nodes = Nodes()
        self.weights = WeightNodes(self.nodes, forms, shared)
        first = next(op.layer for op in program.ops if isinstance(op, Attend))
        self.attention = AttentionNodes(self.nodes, first)
        self._widths: dict[str, int] = {}
        self._hidden = program.sizes.hidden_size
        specs = dict.fromkeys(op.rope for op in program.ops if isinstance(op, Rope))
        self._tables: dict[RopeSpec, tuple[str, str]] = {
            spec: table_names(index) for index, spec in enumerate(specs)
        }
        if specs:
            self.nodes.add("Unsqueeze", POSITIONS, self.nodes.integers(0), out="rope.positions")

    def add(self, op: Op) -> None:
        nodes, weights = self.nodes, self.weights
        match op:
            case Embed():
                self._embed(op)
            case RmsNorm():
                self._norm(op)
            case Linear():
                weights.multiply(op.x, op.weight, op.bias, op.out)
            case Slice():
                bounds = (nodes.integers(op.start), nodes.integers(op.start + op.size))
                nodes.add("Slice", op.x, *bounds, nodes.integers(1), out=op.out)
            case Rope():
                self._rotate(op)
            case Attend():
                self.attention.attend(op, op.q, op.k, op.v)
            case GatedAct():
                self._activate(op.gate, op.up, op.activation, op.out)
            case Moe():
                add_mixture(nodes, weights, op, self._activate)
            case Add():
                nodes.add("Add", op.a, op.b, out=op.out)
            case SumRanks():
                raise AssertionError("a graph holds a whole model")
            case SelectRows():
                nodes.add("Gather", op.x, LOGIT_ROWS, out=op.out, axis=0)
            case Logits():
                self._logits(op)
        self._widths[op.out] = self._width(op)

    def _width(self, op: Op) -> int:
        match op:
            case Embed() | Moe():
                return self._hidden
            case Linear():
                return op.out_features
            case Slice():
                return op.size
            case Logits():
                return op.vocab_size
            case Attend():
                return op.heads * op.head_dim
            case GatedAct():
                return self._widths[op.gate]
            case Add():
                return self._widths[op.a]
            case RmsNorm() | Rope() | SumRanks() | SelectRows():
                return self._widths[op.x]

    def _embed(self, op: Embed) -> None:
        if op.scale == 1:
            self.weights.rows(op.weight, TOKEN_IDS, op.out)
            return
        rows = self.weights.rows(op.weight, TOKEN_IDS, f"{op.out}.rows")
        self.nodes.add("Mul", rows, self.nodes.number(op.scale), out=op.out)

    def _norm(self, op: RmsNorm) -> None:
        nodes, weight, width = self.nodes, self.weights.floats(op.weight), self._widths[op.x]
        if op.offset:
            offset = nodes.number(op.offset)
            weight = nodes.add("Add", weight, offset, out=f"{op.weight}.raised")
        if op.size == width:
            nodes.add("RMSNormalization", op.x, weight, out=op.out, axis=-1, epsilon=op.eps)
            return
        runs = nodes.integers(0, width // op.size, op.size)
        x = nodes.add("Reshape", op.x, runs, out=f"{op.out}.runs")
        x = nodes.add(
            "RMSNormalization", x, weight, out=f"{op.out}.normed", axis=-1, epsilon=op.eps
        )
        nodes.add("Reshape", x, nodes.integers(0, width), out=op.out)

    def _rotate(self, op: Rope) -> None:
        nodes, tables = self.nodes, self._tables[op.rope]
        x = nodes.add("Unsqueeze", op.x, nodes.integers(0), out=f"{op.out}.x")
        partly = op.rope.dimension if op.rope.dimension != op.head_dim else 0
        rotated = nodes.add(
            "RotaryEmbedding",
            x,
            *tables,
            "rope.positions",
            out=f"{op.out}.rotated",
            num_heads=op.heads,
            rotary_embedding_dim=partly,
        )
        nodes.add("Squeeze", rotated, nodes.integers(0), out=op.out)

    def _activate(self, gate: str, up: str, activation: str, out: str) -> str:
        nodes, active = self.nodes, f"{out}.active"
        if activation == "silu":
            sigmoid = nodes.add("Sigmoid", gate, out=f"{out}.sigmoid")
            nodes.add("Mul", gate, sigmoid, out=active)
        else:
            nodes.add("Gelu", gate, out=active, approximate="tanh")
        return nodes.add("Mul", active, up, out=out)

    def _logits(self, op: Logits) -> None:
        if op.softcap is None:
            self.weights.multiply(op.x, op.weight, None, LOGITS)
            return
        nodes, cap = self.nodes, self.nodes.number(op.softcap)
        plain = self.weights.multiply(op.x, op.weight, None, f"{LOGITS}.plain")
        share = nodes.add("Div", plain, cap, out=f"{LOGITS}.share")
        bounded = nodes.add("Tanh", share, out=f"{LOGITS}.bounded")
        nodes.add("Mul", bounded, cap, out=LOGITS)
