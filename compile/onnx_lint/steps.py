"""Rules about a decoder step: what is fed, what attends to what, and which rows reach the head."""

from collections.abc import Iterator

from compile.onnx_lint.facts import ELEMENTWISE, PRODUCTS, ROW_PICKERS, SAME_VALUES, Facts
from compile.onnx_lint.findings import BOTH, ORT, TRT, Said
from compile.onnx_lint.graph import Node

NONPAD = 6
"""Attention's input nonpad_kv_seqlen."""
PAST_KEY = 4
NORMS = frozenset(
    {
        *("RMSNormalization", "LayerNormalization", "SimplifiedLayerNormalization"),
        *("SkipSimplifiedLayerNormalization", "SkipLayerNormalization"),
    }
)
LEAST_VOCABULARY = 1000


def step_rules(facts: Facts) -> Iterator[Said]:
    """L1, L2, L8, L11, L12 and L15."""
    yield from _unread_inputs(facts)
    for node in facts.graph.nodes:
        if node.op == "Attention" and node.domain == "":
            yield from _attention(facts, node)
    yield from _updated_pools(facts)
    yield from _heads(facts)


def _unread_inputs(facts: Facts) -> Iterator[Said]:
    graph = facts.graph
    made = {value.name for value in graph.outputs}
    for value in graph.network_inputs:
        if value.name not in graph.readers and value.name not in made:
            yield Said(
                "L1",
                "wrong",
                BOTH,
                value.name,
                "an input is read by no node: what a caller feeds there changes nothing",
                "remove it, or find the node that was to read it",
            )


def _attention(facts: Facts, node: Node) -> Iterator[Said]:
    if node.input(NONPAD):
        yield Said(
            "L1",
            "wrong",
            TRT,
            node.label,
            "TensorRT's parser drops nonpad_kv_seqlen without a word, and would attend to padding",
            "give the lengths as a boolean mask",
        )
        yield from _whole_cache(facts, node)
    if node.number("is_causal", 0):
        yield Said(
            "L2",
            "wrong",
            TRT,
            node.label,
            "is_causal counts from the upper left in TensorRT and from the last key in ONNX "
            "Runtime: they agree only where there are as many queries as keys",
            "give an explicit mask computed from positions, and no is_causal",
        )
    if facts.dtype(node.input(0)) == "float32":
        yield Said(
            "L8",
            "refused",
            TRT,
            node.label,
            "TensorRT has no kernel for Attention in float32 unless it may be decomposed",
            "compute attention in float16, or set IAttention.decomposable after parsing",
        )


def _whole_cache(facts: Facts, node: Node) -> Iterator[Said]:
    inputs = {value.name for value in facts.graph.network_inputs}
    for above in facts.above(node.input(1), SAME_VALUES):
        first = above.input(0)
        if above.op == "TensorScatter" or (above.op in SAME_VALUES and first in inputs):
            yield Said(
                "L12",
                "slow",
                ORT,
                node.label,
                "Attention walks the whole cache on a CPU, however few of its rows are in use",
                "keep the cache little longer than what lives in it, or gather its live pages",
            )
            return


def _updated_pools(facts: Facts) -> Iterator[Said]:
    """A pool that goes in, is written to, and comes out."""
    graph = facts.graph
    inputs = {value.name for value in graph.network_inputs}
    for value in graph.outputs:
        node = graph.maker.get(value.name)
        if node is None or node.op not in ("ScatterND", "ScatterElements", "TensorScatter"):
            continue
        if node.input(0) in inputs:
            yield Said(
                "L11",
                "note",
                ORT,
                node.label,
                "a pool goes in and comes out changed: it is copied whole in every step unless the "
                "very same buffer is bound as input and output",
                "bind one OrtValue to both, and check once that it is written in place; or only "
                "read the pool, and hand out the new rows",
            )


def _heads(facts: Facts) -> Iterator[Said]:
    """Products as wide as a vocabulary, right before an output, of every row of the step."""
    for value in facts.graph.outputs:
        node = next((n for n in facts.above(value.name, ELEMENTWISE) if n.op in PRODUCTS), None)
        shape = None if node is None else facts.weight_shape(node)
        if node is None or shape is None or shape[1] < max(LEAST_VOCABULARY, 2 * shape[0]):
            continue
        ways = facts.above(node.input(0), ELEMENTWISE | NORMS)
        if not any(n.op in ROW_PICKERS for n in ways):
            yield Said(
                "L15",
                "slow",
                BOTH,
                node.label,
                "the head multiplies every row of a step, though only those that are sampled from "
                "are needed (50 times slower on a prompt of 512 tokens)",
                "Gather the wanted rows by an input before the last norm or the head",
            )
