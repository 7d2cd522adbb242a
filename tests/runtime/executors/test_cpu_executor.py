"""Whole tiny models: the native executor against the oracle in float64, on every kind of weight."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from compile.model import Model
from compile.program import Linear, Logits
from quant.format.errors import UnsupportedModelError
from quant.format.scheme import IntScheme, PerChannel
from quant.format.tensor import QuantizedTensor, Weight
from runtime.engine.batch import Executor, FindsBest, StepBatch
from runtime.executors.cpu import CpuExecutor
from runtime.executors.torch import TorchExecutor
from runtime.kernels.cpu._native import instruction_sets
from tests.runtime.kernels.weights import CODEBOOKS, KINDS, codebook_weight, quantized
from tests.tiny import LONGROPE, tiny_config, tiny_model, tiny_shapes

TOKENS = np.random.default_rng(7).integers(3, 384, 45).astype(np.int32)
PAGE_SIZE = 8
EPS = 0.05

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tied": True}),
    "llama-bias": ("llama", {"bias": True}),
    "llama-float16": ("llama", {"dtype": "float16"}),
    "llama-float32-gelu": ("llama", {"dtype": "float32", "hidden_act": "gelu_pytorch_tanh"}),
    "llama-one-kv-head-odd-vocab": ("llama", {"kv_heads": 1, "vocab": 389}),
    "llama-yarn": (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral-window": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied-one-kv-head": ("qwen2", {"tied": True, "kv_heads": 1}),
    "qwen3": ("qwen3", {}),
    "qwen3-bias-wide-heads": ("qwen3", {"bias": True, "head_dim": 32}),
    "mixtral": ("mixtral", {}),
    "mixtral-one-expert": ("mixtral", {"num_experts_per_tok": 1}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe-partly": ("qwen3_moe", {"mlp_only_layers": [0], "norm_topk_prob": False}),
    "gemma2": ("gemma2", {"layers": 3, "hidden_size": 96, "query_pre_attn_scalar": 40}),
    "gemma3": ("gemma3_text", {"layers": 3, "hidden_size": 96, "tied": True, "head_dim": 32}),
    "phi3": ("phi3", {"kv_heads": 1}),
    "phi3-longrope-window": ("phi3", {"rope_scaling": LONGROPE, "sliding_window": 7}),
}
SCHEMES: dict[str, dict[str, Any]] = {
    f"int{bits}-{kind}-{group}": {"num_bits": bits, "kind": kind, "group_size": group}
    for bits in (4, 8)
    for kind in KINDS[:2]
    for group in (32, 64, 128, None)
} | {
    "int3-short-last-group": {"num_bits": 3, "group_size": 24},
    "int5-minimum": {"num_bits": 5, "kind": "minimum", "group_size": 32},
    "int4-scattered": {"kind": "zero_point", "scattered": True},
    "int2-minimum-of-16": {
        "num_bits": 2, "kind": "minimum", "group_size": 16, "scale_type": np.float32,
    },
    "int6-of-16": {"num_bits": 6, "group_size": 16, "scale_type": np.float32},
    "int4-float32-scales": {"kind": "zero_point", "scale_type": np.float32},
}  # fmt: skip


def executor_of(model: Model, **options: Any) -> CpuExecutor:
    return CpuExecutor(model, num_pages=40, page_size=PAGE_SIZE, **options)


def whole(tokens: npt.NDArray[np.int32]) -> StepBatch:
    """The prompt in one step, with every row's logits."""
    order = np.arange(len(tokens), dtype=np.int32)
    pages = 1 + np.arange(len(tokens) // PAGE_SIZE + 1, dtype=np.int32)[None]
    return StepBatch(tokens, order, np.array([0, len(tokens)], np.int32), pages, order)


def quantized_weights(tied: bool = False, **options: Any) -> dict[str, Weight]:
    """A replacement for every matrix of the tiny llama, embeddings included."""
    shapes = tiny_shapes(tiny_config("llama", tied=tied))
    return {
        name: quantized(*shape, seed=index, **options)
        for index, (name, shape) in enumerate(shapes.items())
        if len(shape) == 2
    }


def tolerance(model: Model, logits: npt.NDArray[np.float32]) -> float:
    """Every product on the way may be wrong by one rounding for each of its terms, and what it is
    wrong by passes through what follows with a gain of about one (these models keep size 1)."""
    roundings = sum(op.in_features for op in model.program.ops if isinstance(op, Linear | Logits))
    return float(roundings * 2.0**-24 * np.abs(logits).max())


def assert_follows_the_oracle(model: Model, **options: Any) -> None:
    batch = whole(TOKENS)
    oracle = TorchExecutor(model, num_pages=40, page_size=PAGE_SIZE, dtype="float64")
    expected = oracle.step(batch)
    found = executor_of(model, **options).step(batch)
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.abs(found - expected).max() <= tolerance(model, expected)


@pytest.mark.parametrize("case", CASES)
def test_families_follow_the_oracle(case: str) -> None:
    family, options = CASES[case]
    assert_follows_the_oracle(tiny_model(family, rms_norm_eps=EPS, **options))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_follow_the_oracle(scheme: str) -> None:
    assert_follows_the_oracle(tiny_model("llama", weights=quantized_weights(**SCHEMES[scheme])))


@pytest.mark.parametrize("kind", CODEBOOKS)
def test_codebooks_follow_the_oracle(kind: str) -> None:
    """The table of the embeddings too."""
    shapes = tiny_shapes(tiny_config("llama"))
    weights: dict[str, Weight] = {
        name: codebook_weight(*shape, kind, seed=index)
        for index, (name, shape) in enumerate(shapes.items())
        if len(shape) == 2
    }
    assert_follows_the_oracle(tiny_model("llama", weights=weights))


def test_a_tied_quantized_table_serves_both_ends() -> None:
    options: dict[str, Any] = {"num_bits": 8, "kind": "zero_point"}
    model = tiny_model("llama", tied=True, weights=quantized_weights(tied=True, **options))
    assert_follows_the_oracle(model)
    table = model.weights.load("model.embed_tokens.weight")
    assert isinstance(table, QuantizedTensor)
    untied = tiny_model("llama", weights=quantized_weights(**options))
    saved = executor_of(untied).weight_bytes - executor_of(model).weight_bytes
    groups = table.scale.shape[1]
    assert saved == 384 * 64 + 384 * groups * 3


@pytest.mark.parametrize("isa", instruction_sets())
def test_every_instruction_set_follows_the_oracle(isa: str) -> None:
    model = tiny_model("qwen3", weights=quantized_weights(kind="zero_point"))
    assert_follows_the_oracle(model, instruction_set=isa)


class Session:
    """Sequences on one executor, each on pages of its own that are scrambled by `seed`."""

    def __init__(self, executor: Executor, tokens: list[npt.NDArray[np.int32]], seed: int) -> None:
        self.executor, self.tokens = executor, tokens
        places = max(map(len, tokens)) // PAGE_SIZE + 1
        pages = np.random.default_rng(seed).permutation(np.arange(1, 40, dtype=np.int32))
        self.table = pages[: len(tokens) * places].reshape(len(tokens), places)
        self.done = [0] * len(tokens)
        self.logits: list[list[npt.NDArray[np.float32]]] = [[] for _ in tokens]

    def step(self, *parts: tuple[int, int]) -> None:
        """Each part: a sequence, and how many of its tokens to run."""
        spans = [(s, range(self.done[s], self.done[s] + n)) for s, n in parts]
        positions = np.concatenate([np.array(span, np.int32) for _, span in spans])
        ids = np.concatenate([self.tokens[s][span.start : span.stop] for s, span in spans])
        starts = np.cumsum([0, *(n for _, n in parts)]).astype(np.int32)
        table = self.table[[s for s, _ in parts]]
        rows = np.arange(len(ids), dtype=np.int32)
        logits = self.executor.step(StepBatch(ids, positions, starts, table, rows)).copy()
        for (s, n), start in zip(parts, starts, strict=False):
            self.logits[s].append(logits[start : start + n])
            self.done[s] += n

    def result(self, sequence: int) -> npt.NDArray[np.float32]:
        return np.concatenate(self.logits[sequence])


@pytest.fixture(scope="module", params=["bfloat16", "int4", "window"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    if request.param == "window":
        yield tiny_model("mistral", sliding_window=11, dtype="float16")
    elif request.param == "int4":
        yield tiny_model("llama", weights=quantized_weights(kind="zero_point", scattered=True))
    else:
        yield tiny_model("qwen3")


@pytest.mark.parametrize("isa", instruction_sets())
def test_company_chunks_pages_and_threads_change_no_bit(model: Model, isa: str) -> None:
    """Alone in one step; then chunked among others, on other pages, with two threads."""
    tokens = [TOKENS, TOKENS[:30][::-1].copy(), TOKENS[5:42].copy()]
    alone = []
    for sequence in tokens:
        session = Session(executor_of(model, threads=1, instruction_set=isa), [sequence], seed=0)
        session.step((0, len(sequence)))
        alone.append(session.result(0))
    busy = executor_of(model, threads=2, instruction_set=isa, max_step_tokens=8)
    session = Session(busy, tokens, seed=1)
    for parts in [
        [(0, 7)],
        [(1, 13), (0, 1)],
        [(2, 20), (0, 1), (1, 1)],
        *([[(s, 1) for s in (0, 1, 2)]] * 4),
        [(0, 32), (1, 12), (2, 13)],
    ]:
        session.step(*parts)
    for index, expected in enumerate(alone):
        np.testing.assert_array_equal(session.result(index), expected)


def test_only_the_asked_rows_come_back_in_their_order(model: Model) -> None:
    executor = executor_of(model)
    batch = whole(TOKENS)
    everything = executor.step(batch).copy()
    rows = np.array([0, 7, 44], np.int32)
    some = StepBatch(batch.token_ids, batch.positions, batch.query_starts, batch.page_table, rows)
    np.testing.assert_array_equal(executor.step(some), everything[rows])


def test_the_largest_logits_are_found_beside_them(model: Model) -> None:
    executor = executor_of(model)
    assert isinstance(executor, FindsBest)
    tokens = np.arange(12, dtype=np.int32) % executor.vocab_size
    batch = replace(whole(tokens), logit_rows=np.array([2, 7, 11], np.int32))
    logits = executor.step(batch)
    np.testing.assert_array_equal(executor.best(), logits.argmax(axis=1))
    executor.hidden(batch)
    np.testing.assert_array_equal(executor.step(batch).argmax(axis=1), executor.best())


def test_a_step_may_ask_for_no_row(model: Model) -> None:
    batch = whole(TOKENS)
    none = StepBatch(
        batch.token_ids, batch.positions, batch.query_starts, batch.page_table, TOKENS[:0]
    )
    assert executor_of(model).step(none).shape == (0, model.program.sizes.vocab_size)


MALFORMED: dict[str, dict[str, npt.NDArray[np.int32]]] = {
    "a token id is outside": {"token_ids": np.full(45, 384, np.int32)},
    "a position is negative": {"positions": np.full(45, -1, np.int32)},
    "a position has no page": {"positions": np.full(45, 200, np.int32)},
    "a page is outside the pool": {"page_table": np.full((1, 6), 40, np.int32)},
    "do not cover": {"query_starts": np.array([0, 44], np.int32)},
    "a logit row is outside": {"logit_rows": np.array([45], np.int32)},
    "lengths differ": {"positions": np.zeros(44, np.int32)},
}


@pytest.mark.parametrize("problem", MALFORMED)
def test_a_malformed_step_is_refused_before_memory_is_touched(problem: str) -> None:
    batch = whole(TOKENS)
    executor = executor_of(tiny_model())
    with pytest.raises(ValueError, match=problem):
        executor.step(StepBatch(**{**vars(batch), **MALFORMED[problem]}))
    executor.step(batch)


class Unreadable:
    """A source that must not be read."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was called")


def test_an_unknown_scheme_is_refused_before_a_weight_is_read() -> None:
    model = tiny_model()
    scheme = IntScheme(12, True, PerChannel())
    ops = tuple(
        Linear(**{**vars(op), "scheme": scheme}) if isinstance(op, Linear) else op
        for op in model.program.ops
    )
    program = type(model.program)(**{**vars(model.program), "ops": ops})
    damaged = Model(**{**vars(model), "program": program, "weights": Unreadable()})
    with pytest.raises(UnsupportedModelError, match=r"q_proj.weight is stored as int12"):
        executor_of(damaged)


def test_a_weight_of_another_shape_is_named() -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    model = tiny_model(weights={name: np.zeros((64, 64), np.float32)})
    with pytest.raises(UnsupportedModelError, match=name):
        executor_of(model)


def test_logits_outlive_the_executor() -> None:
    executor = executor_of(tiny_model())
    logits = executor.step(whole(TOKENS))
    kept = logits.copy()
    executor.close()
    np.testing.assert_array_equal(logits, kept)
    with pytest.raises(AssertionError, match="closed"):
        executor.step(whole(TOKENS))


def test_the_cpu_path_needs_no_torch() -> None:
    code = (
        "import sys, runtime.loading, runtime.executors.cpu;"
        "sys.exit(any(name.split('.')[0] in ('torch', 'transformers') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_operation_without_a_kernel_is_refused_before_a_weight_is_read() -> None:
    class Unknown:
        out = "y"

    model = tiny_model()
    program = replace(model.program, ops=(model.program.ops[0], Unknown()))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="Unknown, that the cpu backend does not know"):
        executor_of(replace(model, program=program, weights=Unreadable()))
