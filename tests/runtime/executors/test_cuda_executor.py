"""Whole tiny models: the executor for GPUs against the oracle in float64."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from torch import Tensor

from compile.model import Model
from compile.program import Linear, Logits, Program
from quant.format.errors import InputError, UnsupportedModelError
from quant.format.kv_cache import KvCacheScheme, KvScales
from quant.format.scheme import (
    ActivationScheme,
    CodebookScheme,
    IntScheme,
    PerBlock,
    PerChannel,
    PerGroup,
)
from quant.format.tensor import QuantizedTensor, Weight
from runtime.engine.batch import Follows, PlainDraw, StepBatch
from runtime.engine.engine import Engine
from runtime.engine.request import Request, SamplingParams
from runtime.executors.torch import TorchExecutor
from runtime.loading import load_executor
from runtime.parallel.part import part_of
from tests.runtime.gpu import COMPILED, DEVICE
from tests.runtime.kernels.weights import codebook_weight, quantized, scattered_groups
from tests.tiny import tiny_config, tiny_model, tiny_shapes

# The device is chosen before kernels are defined.
from runtime.executors.cuda import CudaExecutor  # isort: skip
from runtime.executors.cuda.graphs import EagerRecorder  # isort: skip
from runtime.executors.cuda.memory import check_capability, check_e4m3  # isort: skip
from runtime.kernels.triton.cache import CacheNumber  # isort: skip

PAGE_SIZE = 16
PAGES = 8
TOKENS = np.random.default_rng(3).integers(3, 384, 17).astype(np.int32)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tied": True},
    "mistral": {"sliding_window": 7},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"hidden_size": 96, "query_pre_attn_scalar": 40},
    "gemma3_text": {"hidden_size": 96, "tied": True, "head_dim": 32},
    "phi3": {"kv_heads": 1},
}
SCHEMES: dict[str, dict[str, Any]] = {
    "int4-symmetric-32": {"group_size": 32},
    "int4-zero-points-64": {"kind": "zero_point", "group_size": 64},
    "int3-row": {"num_bits": 3, "kind": "zero_point", "group_size": None},
    "int8-128": {"num_bits": 8, "group_size": 128},
    "int4-minimum": {"kind": "minimum", "group_size": 32},
    "int6-16": {"num_bits": 6, "group_size": 16},
    "int4-scattered": {"kind": "zero_point", "scattered": True},
}


def executor_of(model: Model, **options: Any) -> CudaExecutor:
    return CudaExecutor(
        model,
        num_pages=PAGES,
        page_size=PAGE_SIZE,
        device=str(DEVICE),
        dtype="float32",
        **options,
    )


def oracle_of(model: Model) -> TorchExecutor:
    return TorchExecutor(model, num_pages=PAGES, page_size=PAGE_SIZE, dtype="float64")


def steps() -> list[StepBatch]:
    """Two prompts, the second in two chunks, the rest of it beside a single token. Pages are out of
    order, and the first prompt fills more than one."""
    table = np.array([[3, 1], [2, 5]], np.int32)

    def part(*spans: tuple[int, int, int]) -> StepBatch:
        ids = np.concatenate([TOKENS[start:end] for _, start, end in spans])
        positions = np.concatenate([np.arange(start, end) for _, start, end in spans])
        starts = np.cumsum([0, *(end - start for _, start, end in spans)])
        return StepBatch(
            ids,
            positions.astype(np.int32),
            starts.astype(np.int32),
            table[[sequence for sequence, _, _ in spans]],
            np.arange(len(ids), dtype=np.int32),
        )

    return [part((0, 0, 16), (1, 0, 2)), part((0, 16, 17), (1, 2, 4))]


def tolerance(model: Model, logits: npt.NDArray[np.float32]) -> float:
    """One rounding for each term of every product on the way, at a gain of about one."""
    roundings = sum(op.in_features for op in model.program.ops if isinstance(op, Linear | Logits))
    return float(roundings * 2.0**-24 * np.abs(logits).max())


def assert_follows_the_oracle(model: Model, **options: Any) -> None:
    oracle, executor = oracle_of(model), executor_of(model, **options)
    for batch in steps():
        expected = oracle.step(batch)
        found = executor.step(batch)
        assert found.shape == expected.shape and found.dtype == np.float32
        assert np.abs(found - expected).max() <= tolerance(model, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_follow_the_oracle(family: str) -> None:
    assert_follows_the_oracle(tiny_model(family, rms_norm_eps=0.05, layers=1, **FAMILIES[family]))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_follow_the_oracle(scheme: str) -> None:
    assert_follows_the_oracle(tiny_model("llama", layers=1, weights=_weights(**SCHEMES[scheme])))


def _weights(**options: Any) -> dict[str, Weight]:
    shapes = tiny_shapes(tiny_config("llama", layers=1))
    return {
        name: quantized(*shape, seed=index, **options)
        for index, (name, shape) in enumerate(shapes.items())
        if len(shape) == 2
    }


def _rounded_weights(numbers: str) -> dict[str, Weight]:
    """Every linear of the layer in 8 bits on both sides; "w4afp8" has 4 bits on the weights'."""
    activation = ActivationScheme("int8" if numbers == "int8" else "e4m3")
    if numbers == "w4afp8":
        weights = _weights(kind="zero_point", group_size=32)
        return {
            name: replace(weight, scheme=replace(weight.scheme, activation=activation))
            for name, weight in weights.items()
            if "_proj" in name and isinstance(weight, QuantizedTensor)
        }
    random = np.random.default_rng(11)
    found: dict[str, Weight] = {}
    for name, shape in tiny_shapes(tiny_config("llama", layers=1)).items():
        if "_proj" not in name:
            continue
        scale = (random.random((shape[0], 1)) + 0.5).astype(np.float32) / 1000
        if numbers == "int8":
            scheme: IntScheme | CodebookScheme = IntScheme(8, True, PerChannel(), activation)
            codes = random.integers(-128, 128, shape).astype(np.int8)
        else:
            scheme = CodebookScheme("e4m3", PerChannel(), activation=activation)
            numbers_of = random.normal(size=shape).astype(ml_dtypes.float8_e4m3fn)
            codes, scale = numbers_of.view(np.int8), scale * 100
        found[name] = QuantizedTensor(scheme, codes, scale.astype(ml_dtypes.bfloat16))
    return found


def _rounded_in_groups(numbers: Any) -> dict[str, Weight]:
    """Of 32 columns, in int8; in e4m3, in blocks of 48 x 64, which divide no weight's rows."""
    found: dict[str, Weight] = {}
    size = 64 if numbers == "e4m3" else 32
    way = ActivationScheme(numbers, PerGroup(size))
    for index, (name, shape) in enumerate(tiny_shapes(tiny_config("llama", layers=1)).items()):
        if "_proj" not in name:
            continue
        plain = quantized(*shape, num_bits=8, group_size=size, seed=index)
        scheme: IntScheme | CodebookScheme = IntScheme(8, True, PerGroup(32), way)
        if numbers == "e4m3":
            scheme = CodebookScheme("e4m3", PerBlock(48, size), activation=way)
            values = np.random.default_rng(index).normal(size=shape)
            codes = values.astype(ml_dtypes.float8_e4m3fn).view(np.int8)
            scale = plain.scale.astype(np.float32)[: -(-shape[0] // 48)] * 50
            plain = replace(plain, codes=codes, scale=scale)
        found[name] = replace(plain, scheme=scheme)
    return found


@pytest.mark.parametrize("numbers", ["int8", "e4m3", "w4afp8", "int8-groups", "e4m3-groups"])
def test_rounded_inputs_follow_the_oracle(numbers: str) -> None:
    """Rounding turns the last bits of an input into steps of it here and there: rows behind such a
    step, and those that attend to it, are off by a few of them; others are as near as products
    allow."""
    kind, _, groups = numbers.partition("-")
    weights = _rounded_in_groups(kind) if groups else _rounded_weights(kind)
    model = tiny_model("llama", layers=1, weights=weights)
    oracle, executor = oracle_of(model), executor_of(model)
    near: list[bool] = []
    for batch in steps():
        expected, found = oracle.step(batch), executor.step(batch)
        off = np.abs(found - expected).max(axis=1)
        assert off.max() <= np.abs(expected).max() / 8
        # A GPU adds products of e4m3 with 11 bits fewer than float32 has.
        wider = 2**11 if COMPILED and "e4m3" in numbers else 1
        near += (off <= wider * tolerance(model, expected)).tolist()
    assert sum(near) >= len(near) // 5


def test_a_rank_rounds_by_what_the_others_have() -> None:
    """A rank that has everything, told that another one has numbers twice as large."""
    model = tiny_model("llama", layers=1, weights=_rounded_weights("int8"))
    alone = part_of(model, 0, 1)
    asked: list[int] = []

    def larger(x: Tensor) -> Tensor:
        asked.append(len(x))
        return factor * x

    batch = steps()[0]
    expected = executor_of(model).step(batch)
    for factor in (1.0, 2.0):
        executor = executor_of(alone, sum_ranks=lambda x: x, max_ranks=larger)
        found = executor.step(batch)
        # o_proj and down_proj each asked once, of every token of the step.
        assert asked == [len(batch.token_ids)] * 2
        assert (np.abs(found - expected).max() > 0) == (factor > 1)
        asked.clear()


@pytest.mark.parametrize("cache", ["int8", "e4m3"])
def test_a_rounded_cache_costs_a_little(cache: Any) -> None:
    model = tiny_model("llama", layers=1)
    oracle, executor = oracle_of(model), executor_of(model, cache=cache)
    plain = executor_of(model)
    for batch in steps():
        expected, found = oracle.step(batch), executor.step(batch)
        differences = np.abs(found - expected).max()
        assert 0 < differences <= np.abs(expected).max() / 4
        plain.step(batch)
    assert executor.cache_bytes < plain.cache_bytes / 2


def test_replayed_decode_steps_are_those_that_run_kernel_by_kernel() -> None:
    """Three sequences on a recorded step of four; later two, when the rest must be idle."""
    model = tiny_model("llama", layers=1)
    executor, plain = executor_of(model, recorder=EagerRecorder()), executor_of(model)
    table = np.array([[3], [2], [5]], np.int32)
    for position in range(3):
        for alive in ([0, 1, 2], [0, 2]):
            count = len(alive)
            batch = StepBatch(
                TOKENS[position : position + count].copy(),
                np.full(count, position, np.int32),
                np.arange(count + 1, dtype=np.int32),
                table[alive],
                np.arange(count, dtype=np.int32),
            )
            found, expected = executor.step(batch), plain.step(batch)
            assert np.abs(found - expected).max() <= tolerance(model, expected)


def test_hidden_rows_are_what_logits_are_made_of() -> None:
    model = tiny_model("llama", layers=1)
    batch = steps()[0]
    oracle, executor = oracle_of(model), executor_of(model)
    expected, found = oracle.hidden(batch), executor.hidden(batch)
    assert np.abs(found - expected).max() <= tolerance(model, expected)


def test_four_bits_stay_four_bits_on_the_device() -> None:
    weights = _weights(group_size=32)
    model = tiny_model("llama", layers=1, weights=weights)
    linears = [op for op in model.program.ops if isinstance(op, Linear)]
    packed = sum(op.in_features * op.out_features for op in linears) // 2
    scales = sum(op.in_features // 32 * op.out_features for op in linears) * 2
    tables = executor_of(model).weight_bytes - packed - scales
    head = 384 * 64 // 2 + 384 * 2 * 2
    assert tables == head + 384 * 64 * 4


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (
            IntScheme(4, True, PerGroup(32), ActivationScheme("int8", PerGroup(32))),
            "does not multiply",
        ),
        (IntScheme(8, True, PerGroup(32), ActivationScheme("int8", PerGroup(64))), "multiply"),
        (CodebookScheme("e4m3", PerGroup(32), activation=ActivationScheme("e4m3")), "per row"),
    ],
)
def test_what_no_kernel_multiplies_is_refused_by_name(scheme: Any, words: str) -> None:
    weights = _rounded_weights("int8")
    name = "model.layers.0.self_attn.q_proj.weight"
    old = weights[name]
    assert isinstance(old, QuantizedTensor)
    groups = np.ones((old.shape[0], 2), ml_dtypes.bfloat16)
    weights[name] = replace(old, scheme=scheme, scale=groups, codes=old.codes & 7)
    with pytest.raises(UnsupportedModelError, match=f"q_proj.*{words}"):
        executor_of(tiny_model("llama", layers=1, weights=weights))


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("mixtral", "floats"),
        ("qwen3_moe", "floats"),
        ("mixtral", "zero points"),
        ("qwen3_moe", "mixed"),
        ("qwen3_moe", "int8"),
        ("qwen3_moe", "int8-groups"),
    ],
)
def test_mixtures_follow_the_oracle(family: str, kind: str) -> None:
    """Experts in floats, in 4 bits, in 8 bits on both sides, and each in a way of its own."""
    model = tiny_model(family, layers=1, weights=_expert_weights(family, kind))
    if not kind.startswith("int8"):
        assert_follows_the_oracle(model)
        return
    oracle, executor = oracle_of(model), executor_of(model)
    for batch in steps():
        expected, found = oracle.step(batch), executor.step(batch)
        # An input on the border between two steps may fall to either side.
        off = np.abs(found - expected).max(axis=1)
        assert off.max() <= np.abs(expected).max() / 8
        assert np.median(off) <= np.abs(expected).max() / 64


def _expert_weights(family: str, kind: str) -> dict[str, Weight]:
    found: dict[str, Weight] = {}
    for index, (name, shape) in enumerate(tiny_shapes(tiny_config(family, layers=1)).items()):
        if "experts" not in name or kind == "floats":
            continue
        if kind in ("zero points", "mixed"):
            bits = 8 if kind == "mixed" and index % 2 else 4
            options: dict[str, Any] = {"kind": "zero_point", "num_bits": bits}
            found[name] = quantized(*shape, seed=index, **options)
            continue
        size = 32 if kind == "int8-groups" else None
        way = ActivationScheme("int8", PerGroup(32)) if size else ActivationScheme("int8")
        plain = quantized(*shape, num_bits=8, group_size=size, seed=index)
        found[name] = replace(plain, scheme=replace(plain.scheme, activation=way))
    return found


def test_experts_stored_in_several_ways_are_refused_where_inputs_are_rounded() -> None:
    weights = _expert_weights("mixtral", "int8")
    name = next(iter(weights))
    weights[name] = quantized(*weights[name].shape, group_size=32)
    with pytest.raises(UnsupportedModelError, match="not stored as those of the other experts"):
        executor_of(tiny_model("mixtral", layers=1, weights=weights))


def test_odd_pages_are_refused() -> None:
    with pytest.raises(InputError, match="pages of 24 tokens"):
        CudaExecutor(tiny_model("llama"), num_pages=4, page_size=24, device=str(DEVICE))


def test_numbers_that_a_gpu_does_not_have_are_refused() -> None:
    plain = tiny_model("llama", layers=1).program
    rounded = tiny_model("llama", layers=1, weights=_rounded_weights("e4m3")).program
    cases: tuple[tuple[Program, CacheNumber], ...] = ((plain, "e4m3"), (rounded, "bfloat16"))
    for program, cache in cases:
        check_e4m3(program, cache, (8, 9))
        with pytest.raises(InputError, match=r"capability 8\.6, has no e4m3"):
            check_e4m3(program, cache, (8, 6))
    check_e4m3(plain, "int8", (8, 0))


@pytest.mark.skipif(COMPILED, reason="there is a GPU here")
def test_without_a_gpu_the_backend_is_refused_in_one_sentence() -> None:
    with pytest.raises(InputError, match="no NVIDIA GPU"):
        CudaExecutor(tiny_model("llama"), num_pages=4)
    for pages in (None, 4):
        with pytest.raises(InputError, match="no NVIDIA GPU"):
            load_executor(tiny_model("llama"), backend="cuda", num_pages=pages)


def test_a_checkpoint_says_what_its_cache_is_rounded_to() -> None:
    """Stored scales are used, and a type that is asked for goes before them."""
    model = tiny_model("llama", layers=1)

    class Stored:
        """The model's weights, with scales for its cache."""

        kv_cache = KvCacheScheme("e4m3")

        def kv_scales(self, layer: int) -> KvScales:
            return KvScales(keys=0.03, values=0.02)

        def __getattr__(self, name: str) -> Any:
            return getattr(model.weights, name)

    stored = replace(model, weights=Stored())
    floats, rounded = executor_of(model), executor_of(stored)
    assert rounded.cache_bytes == floats.cache_bytes // 4 + 2 * 4
    assert executor_of(stored, cache="float32").cache_bytes == floats.cache_bytes
    batch = steps()[0]
    expected, found = floats.step(batch), rounded.step(batch)
    assert 0 < np.abs(found - expected).max() <= np.abs(expected).max() / 4


def test_tokens_are_chosen_without_handing_over_logits() -> None:
    model = tiny_model("llama", layers=1)
    executor, plain = executor_of(model, recorder=EagerRecorder()), executor_of(model)
    batch = steps()[0]
    greedy = PlainDraw(0.0, 0, 1.0, 0.0, 0.5)
    found = executor.choose(batch, [greedy] * len(batch.logit_rows))
    assert found.tolist() == plain.step(batch).argmax(axis=1).tolist()
    likely = executor.choose(batch, [PlainDraw(1.0, 1, 1.0, 0.0, 0.9)] * len(batch.logit_rows))
    assert likely.tolist() == found.tolist()


@pytest.mark.parametrize("recorder", [None, EagerRecorder()])
def test_a_step_follows_one_whose_tokens_nobody_has_read(recorder: EagerRecorder | None) -> None:
    """The second of three sequences has ended meanwhile, and the others change places."""
    model = tiny_model("llama", layers=1)
    executor, plain = executor_of(model, recorder=recorder), executor_of(model)
    greedy = PlainDraw(0.0, 0, 1.0, 0.0, 0.5)

    def at(position: int, tokens: list[int], pages: list[int]) -> StepBatch:
        order = np.arange(len(pages), dtype=np.int32)
        places = np.full(len(pages), position, np.int32)
        starts = np.arange(len(pages) + 1, dtype=np.int32)
        return StepBatch(
            np.array(tokens, np.int32), places, starts, np.array(pages, np.int32)[:, None], order
        )

    start = at(0, [7, 8, 9], [3, 2, 5])
    first = executor.begin(start, [greedy] * 3)
    second = executor.begin(
        at(1, [0, 0], [5, 3]), [greedy] * 2, Follows(first, np.array([2, 0], np.int32))
    )
    known = plain.choose(start, [greedy] * 3)
    expected = plain.choose(at(1, [int(known[2]), int(known[0])], [5, 3]), [greedy] * 2)
    assert second.tokens().tolist() == expected.tolist()
    assert first.tokens().tolist() == known.tolist()


def test_the_engine_gives_the_same_text_over_a_device_that_runs_ahead() -> None:
    """Penalties and a ban among them, one aborted while its next step is on the way."""
    model = tiny_model("llama", layers=1)
    texts = []
    for ahead in (True, False):
        executor = executor_of(model, recorder=EagerRecorder())
        engine = Engine(executor if ahead else _Plain(executor), check=True)
        for number, params in enumerate(
            (
                SamplingParams(temperature=0.0),
                SamplingParams(temperature=0.9, seed=4, top_k=8),
                SamplingParams(temperature=0.0, logit_bias={3: 1.0}),
            )
        ):
            engine.add(Request(str(number), (5, 6 + number), 5 - number, params))
        said: dict[str, list[int | None]] = {"0": [], "1": [], "2": []}
        for turn in range(9):
            for event in engine.step():
                said[event.request_id].append(event.token_id)
            if turn == 2:
                engine.abort("1")
        assert not engine.has_work
        texts.append(said)
    assert texts[0] == texts[1] and len(texts[0]["0"]) == 5


class _Plain:
    """An executor that hands over logits."""

    def __init__(self, executor: CudaExecutor) -> None:
        self.vocab_size, self.max_positions = executor.vocab_size, executor.max_positions
        self.page_size, self.num_pages = executor.page_size, executor.num_pages
        self.step, self.close = executor.step, executor.close


def test_scattered_groups_of_one_order_stay_integers() -> None:
    """As GPTQ leaves them with activation ordering: linears of one input share their order."""
    shapes = tiny_shapes(tiny_config("llama", layers=1))
    weights: dict[str, Weight] = {
        name: quantized(*shape, kind="zero_point", scattered=True, seed=shape[1])
        for name, shape in shapes.items()
        if "_proj" in name
    }
    for name, weight in weights.items():
        assert isinstance(weight, QuantizedTensor)
        order = scattered_groups(np.random.default_rng(weight.shape[1]), weight.shape[1], 32)
        weights[name] = replace(weight, group_index=order)
    model = tiny_model("llama", layers=1, weights=weights)
    assert_follows_the_oracle(model)
    floats = executor_of(tiny_model("llama", layers=1)).weight_bytes
    linears = sum(shape[0] * shape[1] for name, shape in shapes.items() if "_proj" in name)
    assert executor_of(model).weight_bytes < floats - 3 * linears


def test_what_no_kernel_takes_is_dequantized_with_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """4-bit codebooks; said once, not for each linear."""
    shapes = tiny_shapes(tiny_config("llama", layers=1))
    weights: dict[str, Weight] = {
        name: codebook_weight(shape[0], shape[1], "mxfp4", seed=index)
        for index, (name, shape) in enumerate(shapes.items())
        if "_proj" in name
    }
    assert_follows_the_oracle(tiny_model("llama", layers=1, weights=weights))
    (said,) = [record.getMessage() for record in caplog.records if "held as" in record.message]
    assert "q_proj" in said and "mxfp4" in said and "float32" in said


def test_all_sizes_are_recorded_before_anybody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.executors.cuda.graphs.LADDER", (1, 2))
    recorded: list[int] = []

    class Counting(EagerRecorder):
        def record(self, work: Any) -> Any:
            found = super().record(work)
            recorded.append(len(found[1]))
            return found

    executor = executor_of(tiny_model("llama", layers=1), recorder=Counting())
    executor.record_all()
    assert recorded == [2, 1]
    batch = steps()[0]
    one = StepBatch(
        batch.token_ids[:1], batch.positions[:1], np.array([0, 1], np.int32),
        batch.page_table[:1], np.zeros(1, np.int32),
    )  # fmt: skip
    executor.step(one)
    assert recorded == [2, 1]


def test_a_gpu_that_is_too_old_is_refused() -> None:
    check_capability((8, 0))
    with pytest.raises(InputError, match=r"capability 7\.5; the cuda backend needs 8\.0"):
        check_capability((7, 5))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_mixtures_answer_as_the_oracle(family: str) -> None:
    """Two requests in one step, greedily."""
    model = tiny_model(family, layers=1)
    answers = []
    for executor in (executor_of(model, recorder=EagerRecorder()), oracle_of(model)):
        engine = Engine(executor, check=True)
        for number in range(2):
            params = SamplingParams(temperature=0.0)
            engine.add(Request(str(number), (5, 6 + number), 4, params))
        said: dict[str, list[int | None]] = {"0": [], "1": []}
        while engine.has_work:
            for event in engine.step():
                said[event.request_id].append(event.token_id)
        answers.append(said)
    assert answers[0] == answers[1] and len(answers[0]["1"]) == 4
