"""What a decoder computes: a flat list of typed ops over named values.

Symbolic sizes: T tokens in the step, R rows that need logits. Every value is float32 [T, width]
unless said otherwise. Executors interpret or lower the list; targets map it to their own nodes.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from quant.format.scheme import QuantizedScheme, Scheme

Value = str
"""Name of an intermediate result; each is written by exactly one op."""


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding in the rotate-half (NEOX) convention over the first `dimension` elements.

    Angle of pair i at position p: p * theta ** (-2 * i / dimension) / factors[i]; cos and sin are
    multiplied by `attention_factor`. `factors` holds every kind of scaling that does not depend on
    the length (linear, llama3, yarn); None means all ones. `scaling` keeps the source's name of it.
    `long_factors` (longrope) hold beyond the Program's own longest context, where no executor goes:
    containers keep them for readers that do.
    """

    dimension: int
    theta: float
    factors: tuple[float, ...] | None = None
    attention_factor: float = 1.0
    scaling: str = "default"
    long_factors: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Embed:
    """out[T, hidden] = table[token_ids[T]] * scale."""

    out: Value
    weight: str
    scheme: Scheme
    scale: float = 1.0


@dataclass(frozen=True)
class RmsNorm:
    """Each run of `size` elements of a row is divided by its root mean square, then multiplied by
    `weight` [size] + offset, a sum in float32. `size` is smaller than the row for the per-head
    norms of queries and keys."""

    out: Value
    x: Value
    weight: str
    size: int
    eps: float
    offset: float = 0.0


@dataclass(frozen=True)
class Linear:
    """out[T, out_features] = x[T, in_features] @ weight.T + bias."""

    out: Value
    x: Value
    weight: str
    bias: str | None
    in_features: int
    out_features: int
    scheme: Scheme


@dataclass(frozen=True)
class Slice:
    """out[T, size] = x[:, start : start + size]: one of the parts that a fused Linear gives."""

    out: Value
    x: Value
    start: int
    size: int


@dataclass(frozen=True)
class Rope:
    """Rotates each of `heads` heads of x[T, heads * head_dim] by its token's position."""

    out: Value
    x: Value
    heads: int
    head_dim: int
    rope: RopeSpec


@dataclass(frozen=True)
class Attend:
    """Stores k and v [T, kv_heads * head_dim] at the step's slots of `layer`'s cache, then causal
    attention of q [T, heads * head_dim] over each token's own sequence.

    `window`: a query at position p sees keys at positions > p - window; None means all.
    """

    out: Value
    q: Value
    k: Value
    v: Value
    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True)
class GatedAct:
    """out = activation(gate) * up."""

    out: Value
    gate: Value
    up: Value
    activation: Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class Expert:
    """down(activation(gate(x)) * up(x)), for the tokens that are sent to it."""

    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True)
class Moe:
    """Each token's row of x [T, hidden] goes through the `chosen` experts for which its row of
    `logits` [T, experts] is largest; out [T, hidden] is their sum, in the order of `experts`, each
    times the softmax of its logit. normalized: these factors are divided by their sum.

    The linears of an expert name values of its tokens alone; no other op reads these.
    """

    out: Value
    x: Value
    logits: Value
    experts: tuple[Expert, ...]
    chosen: int
    normalized: bool
    activation: Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class Add:
    """out = a + b."""

    out: Value
    a: Value
    b: Value


@dataclass(frozen=True)
class SumRanks:
    """out = the sum of x over all ranks, where several processes share a model."""

    out: Value
    x: Value


@dataclass(frozen=True)
class SelectRows:
    """out[R, width] = x[logit_rows]: only the rows that need logits."""

    out: Value
    x: Value


@dataclass(frozen=True)
class Logits:
    """out[R, vocab] = x[R, hidden] @ weight.T, then softcap * tanh(. / softcap) if given."""

    out: Value
    x: Value
    weight: str
    in_features: int
    vocab_size: int
    scheme: Scheme
    softcap: float | None = None


Op = (
    Embed
    | RmsNorm
    | Linear
    | Slice
    | Rope
    | Attend
    | GatedAct
    | Moe
    | Add
    | SumRanks
    | SelectRows
    | Logits
)


@dataclass(frozen=True)
class DecoderSizes:
    """The sizes that page pools, targets and reports need."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    """Longest context in tokens, prompt and answer together."""


@dataclass(frozen=True)
class Program:
    """A decoder, complete: run the ops in order. The last op is Logits."""

    family: str
    sizes: DecoderSizes
    ops: tuple[Op, ...]
    tied_embeddings: bool

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Every tensor name that the ops read, with its shape; a tied table appears once."""
        shapes: dict[str, tuple[int, ...]] = {}
        for op in self._ops_with_experts():
            match op:
                case Embed():
                    shapes[op.weight] = (self.sizes.vocab_size, self.sizes.hidden_size)
                case RmsNorm():
                    shapes[op.weight] = (op.size,)
                case Linear():
                    shapes[op.weight] = (op.out_features, op.in_features)
                    if op.bias is not None:
                        shapes[op.bias] = (op.out_features,)
                case Logits():
                    shapes[op.weight] = (op.vocab_size, op.in_features)
                case _:
                    pass
        return shapes

    def norm_offsets(self) -> dict[str, float]:
        """What is added to each norm's weight before it multiplies."""
        return {op.weight: op.offset for op in self.ops if isinstance(op, RmsNorm)}

    def projections(self) -> Iterator[Linear | Logits]:
        """Every product with a weight, those of experts too."""
        return (op for op in self._ops_with_experts() if isinstance(op, Linear | Logits))

    def _ops_with_experts(self) -> Iterator[Op]:
        for op in self.ops:
            yield op
            for expert in op.experts if isinstance(op, Moe) else ():
                yield from (expert.gate, expert.up, expert.down)

    def rounded_inputs(self) -> str:
        """Whose inputs are rounded, e.g. "those of 28 linears to int8-dynamic-token"; else ""."""
        ways = Counter[str]()
        for op in self.projections():
            if isinstance(op.scheme, QuantizedScheme):
                ways.update([str(op.scheme.activation)] if op.scheme.activation else [])
        parts = [f"those of {count} linears to {way}" for way, count in sorted(ways.items())]
        return ", ".join(parts)
