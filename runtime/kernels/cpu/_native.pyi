"""The compiled extension; arrays are C-contiguous, but scales and minimums may have any strides;
ids are what the add_ methods returned."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

class ThreadPool:
    """Persistent threads; `threads` counts the caller."""

    def __init__(self, threads: int) -> None: ...
    @property
    def size(self) -> int: ...

class Matrix:
    """A packed weight. 16-bit floats are passed as uint16 with their type's name."""

    @staticmethod
    def from_numbers(array: npt.NDArray[Any], type: str, pool: ThreadPool) -> Matrix: ...
    @staticmethod
    def from_file(
        file: tuple[str, int, int, int], columns: int, type: str, pool: ThreadPool
    ) -> Matrix:
        """`from_numbers` of what still lies in a file. file: its path, the byte where the numbers
        begin, how many rows there are, and the bytes of each. Raises RuntimeError where the file
        cannot be read, or ends early."""
    @staticmethod
    def from_integers(
        codes: npt.NDArray[np.int8],
        num_bits: int,
        scale: tuple[npt.NDArray[Any], str],
        zero_point: npt.NDArray[np.int8] | None,
        minimum: tuple[npt.NDArray[Any], str] | None,
        group_starts: npt.NDArray[np.int32],
        column_order: npt.NDArray[np.int32] | None,
        pool: ThreadPool,
        sub_scale: npt.NDArray[np.int8] | None = None,
        sub_minimum: npt.NDArray[np.int8] | None = None,
        quads: bool = False,
    ) -> Matrix:
        """Columns of one group are adjacent in `column_order`; group g is packed columns
        [group_starts[g], group_starts[g + 1]). With `sub_scale` [out, groups], scale and minimum
        are those of several groups, to be multiplied by each group's own. quads: lay the codes out
        for integer products, where the groups allow it (`in_quads` tells)."""
    @staticmethod
    def from_packed(
        data: npt.NDArray[np.uint8] | tuple[str, int, int, int],
        columns: int,
        block: int,
        block_bytes: int,
        offset: int,
        planes: Sequence[tuple[int, int, int, int, int]],
        num_bits: int,
        scale: tuple[npt.NDArray[Any], str],
        zero_point: npt.NDArray[np.int8] | None,
        minimum: tuple[npt.NDArray[Any], str] | None,
        group_starts: npt.NDArray[np.int32],
        pool: ThreadPool,
        sub_scale: npt.NDArray[np.int8] | None = None,
        sub_minimum: npt.NDArray[np.int8] | None = None,
        quads: bool = False,
        turned: bool = False,
    ) -> Matrix:
        """`from_integers` of codes that are read from `quant.format.stored.PackedRows`; a plane is
        (start, bytes, lane, bits, shift). Raises ValueError where these do not fit. data: may be
        left in a file, as `from_file` takes it."""
    @staticmethod
    def from_codebook(
        codes: npt.NDArray[np.int8],
        table: npt.NDArray[np.float32] | None,
        scale: tuple[npt.NDArray[Any], str],
        divisor: float,
        group_starts: npt.NDArray[np.int32],
        column_order: npt.NDArray[np.int32] | None,
        pool: ThreadPool,
        sub_scale: npt.NDArray[np.int8] | None = None,
    ) -> Matrix:
        """`table` holds the 16 values of 4-bit codes; None: codes are e4m3 floats, none of them
        NaN. Every scale is divided by `divisor`."""
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def reordered(self) -> bool: ...
    @property
    def in_quads(self) -> bool:
        """Whether it multiplies rows of int8 (`Plan.add_linear_int8`), and those alone."""
    def dequantize(self) -> npt.NDArray[np.float32]: ...

class Plan:
    """Native ops over buffers; step() runs all of them in one call, without the GIL."""

    def __init__(self, pool: ThreadPool, isa: str = "auto") -> None: ...
    def add_buffer(self, width: int, selected: bool, routed: bool = False) -> int: ...
    def add_rope_table(self, frequencies: Sequence[float], attention_factor: float) -> int: ...
    def add_cache(self, kv_heads: int, head_dim: int, number: str) -> int:
        """`number`: what keys and values are kept in, "float32", "float16" (saturated), "bfloat16"
        or "int8", with a scale for each head of each token."""
    def add_embed(self, out: int, table: Matrix, scale: float = 1.0) -> None: ...
    def add_slice(self, out: int, x: int, start: int) -> None:
        """As many columns of x as `out` is wide. Raises ValueError where x has fewer."""
    def add_rms_norm(self, out: int, x: int, weight: Sequence[float], eps: float) -> None: ...
    def add_gather(self, out: int, x: int, matrix: Matrix) -> None: ...
    def add_round(
        self,
        out: int,
        x: int,
        numbers: str,
        group: int,
        scales: str,
        fixed: float,
        divisor: float,
    ) -> None:
        """As `compile.input_rounding.InputRounding` says; `fixed` is 0 where there is none."""
    def add_linear(
        self, x: int, projections: Sequence[tuple[int, Matrix, npt.NDArray[np.float32] | None]]
    ) -> None: ...
    def add_rounded_buffer(self, width: int, selected: bool, routed: bool = False) -> int:
        """For rows of int8; its ids are apart from those of `add_buffer`."""
    def add_quantize(self, out: int, x: int, group: int, fixed: float, span: float) -> None:
        """Rows of `x` to int8 in the rounded buffer `out`: a scale for `group` columns (0: the
        whole row), which is `fixed`, or where that is 0 the largest magnitude over `span`."""
    def add_linear_int8(
        self, x: int, projections: Sequence[tuple[int, Matrix, npt.NDArray[np.float32] | None]]
    ) -> None:
        """`x`: a rounded buffer; the matrices are all in quads."""
    def add_rope(self, out: int, x: int, heads: int, head_dim: int, table: int) -> None: ...
    def add_attend(
        self,
        out: int,
        q: int,
        k: int,
        v: int,
        cache: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
        window: int,
        softcap: float,
        rounded: bool = False,
    ) -> None:
        """`window` and `softcap` are 0 where there is none. `rounded`: what multiplies a cache in
        bfloat16 is rounded to that too."""
    def add_gated_act(self, out: int, gate: int, up: int, activation: str) -> None: ...
    def add_add(self, out: int, a: int, b: int) -> None: ...
    def add_route(self, out: int, logits: int, chosen: int, normalized: bool) -> None:
        """Decides which rows go to which expert; `out` becomes zeros."""
    def add_send(self, out: int, x: int, expert: int) -> None:
        """Until the next one, routed buffers have as many rows as go to this expert."""
    def add_collect(self, out: int, x: int) -> None: ...
    def add_select_rows(self, out: int, x: int) -> None: ...
    def add_softcap(self, x: int, cap: float) -> None: ...
    def add_argmax(self, x: int) -> None: ...
    def draw(
        self,
        logits: npt.NDArray[np.float32],
        rows: Sequence[int],
        options: Sequence[tuple[float, int, float, float, float]],
    ) -> list[int]:
        """A token of each of these rows of logits [R, n], whose largest number is finite.
        options: temperature, top_k, top_p, min_p and a random number in [0, 1), as `PlainDraw` has
        them."""
    def allocate(
        self, num_pages: int, page_size: int, max_tokens: int, vocab_size: int
    ) -> None: ...
    @property
    def cache_bytes(self) -> int: ...
    def give_back(self, pages: Sequence[int]) -> None:
        """Nobody will read what these pages hold: they take no memory until they are written to
        again. Raises ValueError for a page that is not in the pool."""
    def profile(self, on: bool) -> None:
        """Time every op from now on, from zero, or stop doing so."""
    def timings(self) -> list[tuple[str, float, float]]:
        """Of each op its name, and its seconds in steps of prefill and of decoding."""
    def step(
        self,
        token_ids: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        query_starts: npt.NDArray[np.int32],
        page_table: npt.NDArray[np.int32],
        logit_rows: npt.NDArray[np.int32],
        result: int,
        ops: int | None = None,
    ) -> npt.NDArray[np.float32]:
        """Buffer `result` as a view that the next step overwrites. Raises ValueError for a batch
        that points outside the pool, the vocabulary or itself.

        ops: only so many of the plan's ops are run."""

    def best(self) -> npt.NDArray[np.int32]:
        """What `add_argmax` found in each row of the last step that ran it: the index of the
        largest number, the first of equal ones, or of the first that is none. A view that the next
        step overwrites."""
    @property
    def ops(self) -> int:
        """Ops added so far."""

class Probe:
    """The most that all threads can do together."""

    def __init__(self, pool: ThreadPool, isa: str, size_bytes: int) -> None: ...
    def read(self) -> int:
        """Read that much memory once; how many bytes it was."""
    def multiply(self, rounds: int) -> int:
        """Multiply bytes that are there already; how many operations it was, a product and its
        addition being two."""

def instruction_sets() -> list[str]:
    """Those that this build holds and this processor has, best first."""
