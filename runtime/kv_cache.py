"""What cached keys and values are held in, and the bytes that they take."""

from typing import Literal, get_args

from compile.program import Attend, Program
from quant.format.errors import InputError

KvCacheType = Literal["float32", "float16", "bfloat16", "int8"]
"""float32, float16 and bfloat16: numbers, the largest float16 for those beyond it; what a bfloat16
could only hold below its normal numbers is zero in the cpu executor. int8: the nearest of 255
multiples of a scale that each head of each token has for its keys and for its values, which is
their largest magnitude / 127, in float32."""
KvCacheChoice = Literal["auto", "float32", "float16", "bfloat16", "int8"]
PAD = 16
"""The cpu executor pads pages and heads to whole vectors."""
_WIDTHS: dict[KvCacheType, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
_GROUPS: dict[KvCacheType, int] = {"bfloat16": 2, "int8": 4}
_SCALE_BYTES = 4


def resolve_kv_cache_type(choice: str, backend: str, exact: bool) -> KvCacheType:
    """auto: bfloat16 in the cpu executor unless everything is to be `exact`, else float32.

    Raises InputError for a type that does not exist, or that `backend` cannot choose.
    """
    if choice not in get_args(KvCacheChoice):
        known = ", ".join(get_args(KvCacheChoice))
        raise InputError(f"KV cache type {choice!r} does not exist; choose {known}")
    if choice == "auto":
        return "bfloat16" if backend == "cpu" and not exact else "float32"
    if backend not in ("cpu", "cuda", "torch"):
        raise InputError(
            f"the {backend} backend keeps keys and values as its graph says; leave the KV cache "
            "type at auto"
        )
    return next(each for each in get_args(KvCacheType) if each == choice)


def kv_bytes_per_page(program: Program, page_size: int, number: KvCacheType) -> int:
    """Bytes of one page over all layers, as the cpu executor has them."""
    size = 0
    for op in program.ops:
        if isinstance(op, Attend):
            slots = _padded(page_size)
            group = _GROUPS.get(number, 1)
            elements, positions = (-(-n // group) * group for n in (op.head_dim, page_size))
            numbers = elements * slots + _padded(op.head_dim) * positions
            scales = 2 * slots * _SCALE_BYTES if number == "int8" else 0
            size += op.kv_heads * (_WIDTHS[number] * numbers + scales)
    return size


def check_pages(num_pages: int, page_bytes: int) -> None:
    """Raises InputError where no sequence fits: page 0 is reserved, and each needs one more."""
    if num_pages < 2:
        least = -(-2 * page_bytes // 10**6)
        raise InputError(
            f"a KV cache of {num_pages * page_bytes / 1e6:.3g} MB holds no sequence of this model; "
            f"give it {least} MB at the least"
        )


def _padded(n: int) -> int:
    return -(-n // PAD) * PAD
