"""How large everything is that is measured: real on a GPU, tiny where there is none, where the same
code runs in Triton's interpreter to see that it does."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

Shape = Mapping[str, int]


@dataclass(frozen=True)
class Sizes:
    """shapes: of models, by name. columns_in, columns_out: of the weight of single products. rows:
    of their inputs. context: tokens behind which attention and decode steps are timed. copied:
    bytes. product: of a square matrix. repeats: of each timing."""

    shapes: Mapping[str, Shape]
    columns_in: int
    columns_out: int
    rows: tuple[int, ...]
    long_context: int
    attending: tuple[int, ...]
    heads: tuple[int, int, int]
    context: int
    prompt: int
    steps: int
    streams: tuple[int, int]
    copied: int
    product: int
    repeats: int
    cold: int
    """Copies of a small kernel's memory, so that none of it is left in the cache."""


REAL = Sizes(
    shapes={
        "1.1B": {
            "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
            "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
        },
        "8B": {
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        },
    },
    columns_in=4096, columns_out=14336, rows=(1, 2048, 16, 32, 4, 512),
    long_context=8192, attending=(16, 1), heads=(32, 8, 128),
    context=512, prompt=2048, steps=32, streams=(1, 64),
    copied=2 << 30, product=8192, repeats=20, cold=8,
)  # fmt: skip
_TINY_SHAPE = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96,
}  # fmt: skip
TINY = Sizes(
    shapes={"1.1B": _TINY_SHAPE, "8B": _TINY_SHAPE},
    columns_in=128, columns_out=256, rows=(1, 20),
    long_context=64, attending=(2, 1), heads=(4, 2, 16),
    context=20, prompt=24, steps=2, streams=(1, 3),
    copied=1 << 16, product=64, repeats=1, cold=2,
)  # fmt: skip
SIZES = REAL if torch.cuda.is_available() else TINY
