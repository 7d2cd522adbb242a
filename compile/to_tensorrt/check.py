"""Does the parsed network mean what the graph meant? TensorRT's parser drops what it does not know.

Each question stands for a case in which an engine was built without a word and would have answered
wrongly: an input that no layer reads, a causal mask aligned to the wrong corner.
"""

from collections.abc import Collection
from typing import Any, Protocol

from quant.format.errors import CheckFailedError


class ParsedNetwork(Protocol):
    """What `compile.to_tensorrt.api.Network` answers."""

    def inputs(self) -> dict[str, tuple[int, ...]]: ...
    def values_used_as_shapes(self) -> list[str]: ...
    def outputs(self) -> list[str]: ...
    def consumed(self) -> set[str]: ...
    def attentions(self) -> list[Any]: ...


def check_network(
    network: ParsedNetwork, inputs: Collection[str], outputs: Collection[str], attentions: int
) -> None:
    """Raises CheckFailedError for the first thing that is not as the graph has it.

    inputs, outputs: the graph's names. attentions: how many of its nodes attend.
    """
    problem = _ports(network, set(inputs), set(outputs)) or _attentions(network, attentions)
    if problem is not None:
        raise CheckFailedError(f"TensorRT would not compute what the graph says: {problem}")


def _ports(network: ParsedNetwork, inputs: set[str], outputs: set[str]) -> str | None:
    found = set(network.inputs())
    if found != inputs:
        return f"its parser made other inputs ({', '.join(sorted(found ^ inputs))})"
    if set(network.outputs()) != outputs:
        return "its parser made other outputs"
    unread = sorted(inputs - network.consumed())
    if unread:
        return f"its parser dropped the input {unread[0]}, which no layer reads"
    shaping = network.values_used_as_shapes()
    if shaping:
        return f"the numbers of the input {shaping[0]} decide shapes, so it would lie on the host"
    return None


def _attentions(network: ParsedNetwork, count: int) -> str | None:
    found = network.attentions()
    if len(found) != count:
        return f"it has {len(found)} attentions instead of {count}"
    for attention in found:
        kind = getattr(attention.causal_kind, "name", str(attention.causal_kind))
        if kind != "NONE":
            return f"an attention is causal by itself ({kind}), beside its mask"
        if attention.mask is None:
            return "an attention lost its mask"
        if attention.key_value_lengths is not None or attention.query_lengths is not None:
            return "an attention has lengths of its own, beside its mask"
    return None
