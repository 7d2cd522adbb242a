"""Tiny models built into ONNX, and schedules that run any executor."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.model import Model
from compile.open_model import open_model
from compile.program import Linear, Logits
from compile.to_onnx.build import build_model
from quant.format.scheme import IntScheme, PerChannel, PerGroup
from quant.format.tensor import QuantizedTensor
from runtime.engine.batch import Executor, StepBatch
from tests.runtime.kernels.weights import quantized
from tests.tiny import round_to_nearest, tiny_model

VERSION = "0"
TABLE = "model.embed_tokens.weight"
PAGE_SIZE, NUM_PAGES = 4, 40
INT4 = IntScheme(4, True, PerGroup(32))
SCHEMES = {
    "int4": INT4,
    "int4-g16": IntScheme(4, True, PerGroup(16)),
    "int4-asymmetric": IntScheme(4, False, PerGroup(32)),
    "int4-channel": IntScheme(4, True, PerChannel()),
    "int3": IntScheme(3, True, PerGroup(32)),
    "int8": IntScheme(8, True, PerGroup(64)),
    "int8-channel": IntScheme(8, True, PerChannel()),
    "int8-asymmetric": IntScheme(8, False, PerGroup(32)),
}
Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Schedule = Sequence[Sequence[tuple[int, int]]]
"""For each step, the sequences that take part and how many tokens each of them runs."""

# Chunks, single tokens, several sequences; sequence 3 takes over the pages of sequence 0.
MIXED: Schedule = [
    [(0, 5)],
    [(0, 1), (1, 9)],
    [(1, 1), (0, 1), (2, 13)],
    [(0, 1), (1, 1), (2, 1)],
    [(2, 7), (0, 2), (1, 1)],
    [(1, 4), (3, 6)],
    [(3, 1), (2, 1)],
    [(2, 1), (1, 1), (3, 1)],
]
TAKES_OVER = {3: 0}


def model_and_artifact(directory: Path, *args: Any, **options: Any) -> tuple[Model, Model]:
    """A tiny model in memory, and what its ONNX files say. type_name: of the build."""
    type_name = options.pop("type_name", "auto")
    model = tiny_model(*args, **options)
    build_model(model, directory, type_name, version=VERSION)
    return model, open_model(directory)


def table_of(scheme: IntScheme) -> QuantizedTensor:
    """The token table of the tiny llama, in `scheme`."""
    values = tiny_model().weights.load(TABLE)
    assert not isinstance(values, QuantizedTensor)
    return round_to_nearest(values, scheme)


def scattered_model(family: str = "llama", kind: str = "zero_point") -> Model:
    """A tiny model, every linear of whose layers has groups of scattered columns, and says so."""
    model = tiny_model(family)
    weights = {
        name: quantized(*shape, seed=index, kind=kind, scattered=True)
        for index, (name, shape) in enumerate(model.program.weights().items())
        if "_proj.weight" in name
    }
    config = {**model.config, "quantization_config": {"quant_method": "gptq", "desc_act": True}}
    return replace(tiny_model(family, weights=weights), config=config)


def random_tokens(count: int, seed: int) -> Int32:
    return np.random.default_rng(seed).integers(3, 384, count).astype(np.int32)


def sequences_of(schedule: Schedule) -> list[Int32]:
    """Random tokens, as many for each sequence as the schedule runs."""
    counts: dict[int, int] = {}
    for sequence, count in (part for step in schedule for part in step):
        counts[sequence] = counts.get(sequence, 0) + count
    return [random_tokens(counts[sequence], seed=sequence) for sequence in sorted(counts)]


def run_schedule(
    executor: Executor, schedule: Schedule, sequences: Sequence[Int32]
) -> list[Float32]:
    """Logits of every token of every sequence, on pages in a scrambled order."""
    places = 1 + max(map(len, sequences)) // executor.page_size
    pages = np.random.default_rng(0).permutation(np.arange(1, executor.num_pages, dtype=np.int32))
    table = pages[: places * len(sequences)].reshape(len(sequences), places)
    for later, earlier in TAKES_OVER.items() if schedule is MIXED else ():
        table[later] = table[earlier]
    done, logits = [0] * len(sequences), list[list[Float32]]([] for _ in sequences)
    for step in schedule:
        spans = [(s, np.arange(done[s], done[s] + n, dtype=np.int32)) for s, n in step]
        starts = np.cumsum([0, *(n for _, n in step)]).astype(np.int32)
        batch = StepBatch(
            np.concatenate([sequences[s][span] for s, span in spans]),
            np.concatenate([span for _, span in spans]),
            starts,
            table[[s for s, _ in step]],
            np.arange(starts[-1], dtype=np.int32),
        )
        rows = executor.step(batch).copy()
        for place, (s, n) in enumerate(step):
            logits[s].append(rows[starts[place] : starts[place + 1]])
            done[s] += n
    return [np.concatenate(parts) for parts in logits]


def rounding_bound(model: Model, logits: Float32) -> float:
    """Every product on the way may be wrong by one rounding for each of its terms, and what it is
    wrong by passes through what follows with a gain of about one (these models keep size 1)."""
    roundings = sum(op.in_features for op in model.program.ops if isinstance(op, Linear | Logits))
    return float(roundings * 2.0**-24 * np.abs(logits).max())
