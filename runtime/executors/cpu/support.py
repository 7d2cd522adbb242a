"""What the native executor can run, decided from headers alone."""

from typing import get_args

from compile.input_rounding import check_input
from compile.program import Attend, Embed, Op, Program, Rope, SumRanks
from quant.format.errors import UnsupportedModelError
from quant.format.scheme import CodebookScheme, FloatScheme, IntScheme, Scheme

KNOWN = get_args(Op)
SMALLEST_BITS, LARGEST_BITS = 2, 8


def check_supported(program: Program) -> None:
    """Raises UnsupportedModelError naming the tensor or the layer; reads no weight."""
    for matrix in (*program.projections(), *_tables(program)):
        _check_scheme(matrix.weight, matrix.scheme)
        check_input(matrix.weight, matrix.scheme)
    for op in program.ops:
        match op:
            case Attend() if op.heads % op.kv_heads != 0:
                raise UnsupportedModelError(
                    f"layer {op.layer} shares {op.kv_heads} key-value heads among {op.heads} "
                    "query heads, which do not divide evenly; the config is damaged"
                )
            case Rope() if op.rope.dimension % 2 or op.rope.dimension > op.head_dim:
                raise UnsupportedModelError(
                    f"a rotary embedding of {op.rope.dimension} of a head's {op.head_dim} elements "
                    "is not an even part of the head; the config is damaged"
                )
            case SumRanks():
                raise UnsupportedModelError(
                    "the cpu backend runs a model in one process; leave out --tensor-parallel"
                )
            case _ if not isinstance(op, KNOWN):
                raise UnsupportedModelError(
                    f"{program.family} models have an operation, {type(op).__name__}, that the cpu "
                    "backend does not know; use the torch backend"
                )
            case _:
                pass


def _tables(program: Program) -> list[Embed]:
    return [op for op in program.ops if isinstance(op, Embed)]


def _check_scheme(name: str, scheme: Scheme) -> None:
    if isinstance(scheme, IntScheme) and not SMALLEST_BITS <= scheme.num_bits <= LARGEST_BITS:
        raise UnsupportedModelError(
            f"tensor {name} is stored as {scheme}; the cpu backend reads integers of "
            f"{SMALLEST_BITS} to {LARGEST_BITS} bits: use the torch backend or another build"
        )


def held_form(scheme: Scheme) -> str:
    """What a matrix of this scheme is in memory, where nothing is rounded again."""
    if isinstance(scheme, FloatScheme):
        return scheme.dtype
    if isinstance(scheme, CodebookScheme):
        return "8-bit floats" if scheme.num_bits == 8 else f"4-bit codes of {scheme.codebook}"
    return f"{4 if scheme.num_bits <= 4 else 8}-bit integers"
