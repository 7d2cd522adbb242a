"""The same step for a reader that writes pools in place: ONNX Runtime, with one buffer bound as a
pool's input and output.

The portable graph appends the step's keys to the past's; here they are scattered into the pool
first, and pages are gathered after that, which saves a copy of everything that is attended to. Made
from the portable graph when it is loaded, and told from it by nothing but where rows lie.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from compile.onnx_contract import PAST_LENGTHS, QUERY_LENGTHS
from compile.onnx_proto import Graph, Node, Port
from compile.to_onnx.nodes import Nodes

WRITE_SLOTS = "write_slots"
"""Input int64 [T, 2]: page and offset of each token. Pages of `page_table` hold the step's own
tokens too."""
TOTAL_LENGTHS = "mask.total_lengths"
NEW_PREFIX, POOL_PREFIX = "new_", "pool_"


def written_name(pool: str) -> str:
    """Output: the pool with the step's keys or values, to be bound to the pool's own buffer."""
    return f"{pool}.written"


def aliased(graph: Graph) -> Graph:
    """`graph` must be one that coldpress built, with its constants."""
    pools = {port.name: _pool(port.name) for port in graph.outputs if _pool(port.name)}
    renamed = {"mask.present": "mask.past.valid", "mask.keys": "mask.past_positions"}
    renamed |= {f"{new}.all": f"{new}.past" for new in pools}
    shapes = {port.name: port for port in graph.inputs}
    head_dims = {new: int(shapes[pool].shape[-1]) for new, pool in pools.items()}
    nodes = Nodes()
    nodes.constants |= graph.constants
    nodes.add("Add", PAST_LENGTHS, QUERY_LENGTHS, out=TOTAL_LENGTHS)
    # Rows are written as they are: pools have no heads here, and need none.
    rows = {node.outputs[0]: node.inputs[0] for node in graph.nodes if node.outputs[0] in pools}
    for node in graph.nodes:
        _add(nodes, _with_inputs(node, renamed), pools, rows, head_dims)
    kept = [port for port in graph.outputs if port.name not in pools]
    flat = {pool: _flat(shapes[pool]) for pool in pools.values()}
    written = [replace(port, name=written_name(pool)) for pool, port in flat.items()]
    inputs = [flat.get(port.name, port) for port in graph.inputs]
    outputs = (*kept, *written)
    return replace(
        graph,
        inputs=(*inputs, Port(WRITE_SLOTS, "int64", ("T", 2))),
        outputs=outputs,
        nodes=_alive(nodes.nodes, outputs),
        constants=nodes.constants,
    )


def _pool(new: str) -> str:
    """The pool that an output's rows belong to; "" for other outputs."""
    return new.replace(NEW_PREFIX, POOL_PREFIX, 1) if new.startswith(NEW_PREFIX) else ""


def _flat(pool: Port) -> Port:
    """[N, P, kv_heads * head_dim]."""
    *places, heads, head_dim = pool.shape
    return replace(pool, shape=(*places, int(heads) * int(head_dim)))


def _with_inputs(node: Node, renamed: Mapping[str, str]) -> Node:
    return replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))


def _add(
    nodes: Nodes,
    node: Node,
    pools: Mapping[str, str],
    rows: Mapping[str, str],
    head_dims: Mapping[str, int],
) -> None:
    """rows: what is written into the pool of each output, float32 [T, kv_heads * head_dim]."""
    out = node.outputs[0]
    owner = out.removesuffix(".pages")
    if out == "mask.past.lengths":
        nodes.nodes.append(_with_inputs(node, {PAST_LENGTHS: TOTAL_LENGTHS}))
    elif owner != out and owner in pools:
        pool = pools[owner]
        written = nodes.add("ScatterND", pool, WRITE_SLOTS, rows[owner], out=written_name(pool))
        nodes.nodes.append(_with_inputs(node, {pool: written}))
    elif node.op == "Attention":
        _attend(nodes, node, head_dims[node.inputs[1].removesuffix(".past")])
    else:
        nodes.nodes.append(node)


def _attend(nodes: Nodes, node: Node, head_dim: int) -> None:
    """Query heads that share keys become queries of one head, so that keys are not repeated: their
    order is [shared, Q], and the mask's rows are repeated instead."""
    out, (q, k, v, mask) = node.outputs[0], node.inputs
    heads, kv_heads = (int(_number(node, name)) for name in ("q_num_heads", "kv_num_heads"))
    shared = heads // kv_heads
    if shared == 1:
        nodes.nodes.append(node)
        return
    repeated = f"{mask}.x{shared}"
    if not any(repeated in other.outputs for other in nodes.nodes):
        nodes.add("Tile", mask, nodes.integers(1, 1, shared, 1), out=repeated)
    sizes = nodes.integers(0, 0, kv_heads, shared, head_dim)
    split = nodes.add("Reshape", q, sizes, out=f"{q}.split")
    turned = nodes.add("Transpose", split, out=f"{q}.turned", perm=(0, 3, 1, 2, 4))
    sizes = nodes.integers(0, -1, kv_heads * head_dim)
    queries = nodes.add("Reshape", turned, sizes, out=f"{q}.shared")
    attended = nodes.add(
        "Attention",
        *(queries, k, v, repeated),
        out=f"{out}.shared",
        q_num_heads=kv_heads,
        kv_num_heads=kv_heads,
        scale=_number(node, "scale"),
    )
    sizes = nodes.integers(0, shared, -1, kv_heads, head_dim)
    apart = nodes.add("Reshape", attended, sizes, out=f"{out}.apart")
    nodes.add("Transpose", apart, out=out, perm=(0, 2, 3, 1, 4))


def _number(node: Node, name: str) -> float:
    value = node.attributes[name]
    assert isinstance(value, int | float)
    return value


def _alive(nodes: Sequence[Node], outputs: Sequence[Port]) -> tuple[Node, ...]:
    """Those that some output needs."""
    needed, kept = {port.name for port in outputs}, list[Node]()
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            kept.append(node)
    return tuple(reversed(kept))
