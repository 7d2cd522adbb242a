"""Attention over pages that the graph only reads, and the step's own keys and values.

Tokens of all sequences lie one after the other; for attention alone they are gathered into
[B, Q, width], so that a sequence is never multiplied with another's keys. The mask is computed from
positions: `is_causal` and `nonpad_kv_seqlen` mean different things to different readers.
"""

from compile.onnx_contract import (
    PAGE_TABLE,
    PAST_LENGTHS,
    POSITIONS,
    QUERY_LENGTHS,
    QUERY_ROWS,
    TOKEN_PLACES,
    new_names,
    pool_names,
)
from compile.program import Attend
from compile.to_onnx.nodes import Nodes

LOWEST = -3.0e38
"""A score that no key has; finite, so that rows of padding alone stay numbers."""


class AttentionNodes:
    """Every layer's attention; layers with the same window share a mask."""

    def __init__(self, nodes: Nodes, first_layer: int) -> None:
        self._nodes = nodes
        self._pool = pool_names(first_layer)[0]
        self._masks: dict[int | None, str] = {}

    def attend(self, op: Attend, q: str, k: str, v: str) -> None:
        nodes, width = self._nodes, op.heads * op.head_dim
        inputs = [nodes.add("Gather", q, QUERY_ROWS, out=f"{op.out}.queries", axis=0)]
        for value, pool, new in zip((k, v), pool_names(op.layer), new_names(op.layer), strict=True):
            inputs.append(self._all_rows(op, value, pool, new))
        if op.softcap is not None:
            attended = self._capped(op, op.softcap, *inputs)
        else:
            attended = nodes.add(
                "Attention",
                *inputs,
                self._mask(op.window),
                out=f"{op.out}.padded",
                q_num_heads=op.heads,
                kv_num_heads=op.kv_heads,
                scale=op.scale,
            )
        rows = nodes.add("Reshape", attended, nodes.integers(-1, width), out=f"{op.out}.rows")
        nodes.add("Gather", rows, TOKEN_PLACES, out=op.out, axis=0)

    def _capped(self, op: Attend, softcap: float, q: str, k: str, v: str) -> str:
        """[B, kv_heads, shared, Q, head_dim] brought back to [B, Q, heads, head_dim]: spelled out,
        because ONNX leaves open whether Attention caps scores before or after it masks them."""
        nodes, shared = self._nodes, op.heads // op.kv_heads
        sizes = nodes.integers(0, 0, op.kv_heads, shared, op.head_dim)
        q = nodes.add("Reshape", q, sizes, out=f"{op.out}.q_heads")
        q = nodes.add("Transpose", q, out=f"{op.out}.q", perm=(0, 2, 3, 1, 4))
        sizes = nodes.integers(0, 0, op.kv_heads, 1, op.head_dim)
        k = nodes.add("Reshape", k, sizes, out=f"{op.out}.k_heads")
        k = nodes.add("Transpose", k, out=f"{op.out}.k", perm=(0, 2, 3, 4, 1))
        v = nodes.add("Reshape", v, sizes, out=f"{op.out}.v_heads")
        v = nodes.add("Transpose", v, out=f"{op.out}.v", perm=(0, 2, 3, 1, 4))
        scores = nodes.add("MatMul", q, k, out=f"{op.out}.products")
        share = nodes.number(op.scale / softcap)
        scores = nodes.add("Mul", scores, share, out=f"{op.out}.shares")
        scores = nodes.add("Tanh", scores, out=f"{op.out}.bounded")
        scores = nodes.add("Mul", scores, nodes.number(softcap), out=f"{op.out}.scores")
        mask = nodes.add(
            "Unsqueeze", self._mask(op.window), nodes.integers(1), out=f"{op.out}.mask"
        )
        seen = nodes.add("Where", mask, scores, nodes.number(LOWEST), out=f"{op.out}.seen")
        weights = nodes.add("Softmax", seen, out=f"{op.out}.weights", axis=-1)
        mixed = nodes.add("MatMul", weights, v, out=f"{op.out}.mixed")
        return nodes.add("Transpose", mixed, out=f"{op.out}.padded", perm=(0, 3, 1, 2, 4))

    def _all_rows(self, op: Attend, value: str, pool: str, new: str) -> str:
        """[B, M * P + Q, kv_heads * head_dim]: past rows, then the step's own."""
        nodes, width = self._nodes, op.kv_heads * op.head_dim
        shape = nodes.integers(0, op.kv_heads, op.head_dim)
        nodes.add("Reshape", value, shape, out=new)
        pages = nodes.add("Gather", pool, PAGE_TABLE, out=f"{new}.pages", axis=0)
        past = nodes.add("Reshape", pages, nodes.integers(0, -1, width), out=f"{new}.past")
        own = nodes.add("Gather", value, QUERY_ROWS, out=f"{new}.own", axis=0)
        return nodes.add("Concat", past, own, out=f"{new}.all", axis=1)

    def _mask(self, window: int | None) -> str:
        """bool [B, 1, Q, M * P + Q]: which keys each query sees."""
        if not self._masks:
            self._add_causal_mask()
        if window not in self._masks:
            self._masks[window] = self._within(window or 0)
        return self._masks[window]

    def _add_causal_mask(self) -> None:
        nodes = self._nodes
        past, past_positions = self._past()
        queries = nodes.add("Gather", POSITIONS, QUERY_ROWS, out="mask.positions", axis=0)
        own = self._counted("mask.own", self._size(QUERY_ROWS, 1), QUERY_LENGTHS)[0]
        present = nodes.add("Concat", past, own, out="mask.present", axis=1)
        keys = nodes.add("Concat", past_positions, queries, out="mask.keys", axis=1)
        nodes.add("Unsqueeze", keys, nodes.integers(1, 2), out="mask.key_positions")
        nodes.add("Unsqueeze", queries, nodes.integers(1, 3), out="mask.query_positions")
        order = nodes.add(
            "LessOrEqual", "mask.key_positions", "mask.query_positions", out="mask.order"
        )
        valid = nodes.add("Unsqueeze", present, nodes.integers(1, 2), out="mask.valid")
        self._masks[None] = nodes.add("And", valid, order, out="mask.causal")

    def _past(self) -> tuple[str, str]:
        """bool [B, M * P]: whether a row of the pages is a key; int64 of the same: its position."""
        nodes = self._nodes
        pages, page_size = self._size(PAGE_TABLE, 1), self._size(self._pool, 1)
        length = nodes.add("Mul", pages, page_size, out="mask.past_size")
        valid, positions = self._counted("mask.past", length, PAST_LENGTHS)
        shape = nodes.add("Shape", valid, out="mask.past_shape")
        return valid, nodes.add("Expand", positions, shape, out="mask.past_positions")

    def _counted(self, name: str, size: str, lengths: str) -> tuple[str, str]:
        """bool [B, size]: whether a place is below the sequence's length; the places [size]."""
        nodes = self._nodes
        places = nodes.add("Range", nodes.integer(0), size, nodes.integer(1), out=f"{name}.places")
        column = nodes.add("Unsqueeze", lengths, nodes.integers(1), out=f"{name}.lengths")
        return nodes.add("Less", places, column, out=f"{name}.valid"), places

    def _size(self, tensor: str, axis: int) -> str:
        """int64 without dimensions: one size of a tensor."""
        nodes = self._nodes
        name = f"size.{tensor}.{axis}"
        sizes = nodes.add("Shape", tensor, out=f"{name}.shape")
        return nodes.add("Gather", sizes, nodes.integer(axis), out=name, axis=0)

    def _within(self, window: int) -> str:
        nodes, name = self._nodes, f"mask.window{window}"
        first = nodes.add(
            "Sub", "mask.query_positions", nodes.integer(window), out=f"{name}.before"
        )
        near = nodes.add("Greater", "mask.key_positions", first, out=f"{name}.near")
        return nodes.add("And", "mask.causal", near, out=name)
