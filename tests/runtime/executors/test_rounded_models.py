"""Whole models whose linears round their inputs: the native executor against the oracle."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from compile.input_rounding import InputRounding
from compile.model import Model
from compile.program import Add, DecoderSizes, Embed, Linear, Logits, Op, Program, SelectRows
from quant.format.errors import UnsupportedModelError
from quant.format.scheme import (
    ActivationScheme,
    FloatScheme,
    PerGroup,
    PerTensor,
    PerToken,
    QuantizedScheme,
)
from quant.format.tensor import QuantizedTensor, Weight
from runtime.engine.batch import StepBatch
from runtime.executors.cpu import CpuExecutor
from runtime.executors.torch import TorchExecutor
from runtime.executors.torch.rounding import round_input
from runtime.kernels.cpu._native import instruction_sets
from tests.runtime.kernels.weights import codebook_weight, quantized
from tests.tiny import TinySource, tiny_config, tiny_model, tiny_shapes

TOKEN8, TOKEN_E4M3 = ActivationScheme("int8"), ActivationScheme("e4m3", PerToken())
STATIC8 = ActivationScheme("int8", PerTensor(), dynamic=False)
STATIC_E4M3 = ActivationScheme("e4m3", PerTensor(), dynamic=False)
NVFP4, MXFP4 = ActivationScheme("e2m1", PerGroup(16)), ActivationScheme("e2m1", PerGroup(32))
INPUT_SCALE = {STATIC8: 0.03, STATIC_E4M3: 0.01, NVFP4: 700.0}
Make = dict[str, Any]

CASES: dict[str, Make] = {
    "w8a8-dynamic": {"num_bits": 8, "group_size": None, "activation": TOKEN8},
    "w8a8-static": {"num_bits": 8, "group_size": None, "activation": STATIC8},
    "w4a8": {"num_bits": 4, "group_size": 32, "activation": TOKEN8},
    "w4a8-scattered": {"group_size": 32, "scattered": True, "activation": TOKEN8},
    "w4afp8": {"num_bits": 4, "group_size": 32, "activation": TOKEN_E4M3},
    "fp8-dynamic": {"kind": "fp8-channel", "activation": TOKEN_E4M3},
    "fp8-static": {"kind": "fp8-tensor", "activation": STATIC_E4M3},
    "fp8-block": {"kind": "fp8-block", "activation": ActivationScheme("e4m3", PerGroup(128))},
    "nvfp4": {"kind": "nvfp4", "activation": NVFP4},
    "mxfp4": {"kind": "mxfp4", "activation": MXFP4},
    "mxfp8": {"kind": "mxfp8", "activation": ActivationScheme("e4m3", PerGroup(32))},
    "mxfp4-weights-fp8-inputs": {
        "kind": "mxfp4",
        "activation": ActivationScheme("e4m3", PerGroup(128)),
    },
}
TOKENS = np.random.default_rng(7).integers(3, 384, 45).astype(np.int32)
UNIT = 2.0**-24


def rounding_weight(shape: tuple[int, ...], case: Make, seed: int = 0) -> QuantizedTensor:
    rows, columns = shape
    scale = INPUT_SCALE.get(case["activation"])
    if str(case.get("kind")) not in ("None", "symmetric"):
        return codebook_weight(rows, columns, **case, seed=seed, input_scale=scale)
    plain = quantized(
        rows, columns, **{k: v for k, v in case.items() if k != "activation"}, seed=seed
    )
    return with_activation(plain, case["activation"], scale)


def with_activation(
    weight: QuantizedTensor, activation: ActivationScheme | None, scale: float | None
) -> QuantizedTensor:
    scheme: QuantizedScheme = replace(weight.scheme, activation=activation)
    return replace(weight, scheme=scheme, input_scale=scale)


def one_linear(case: Make, columns: int = 96, rows: int = 130, head: bool = False) -> Model:
    """Embed, then a linear or the head with the case's weight: nothing else that could differ."""
    weight = rounding_weight((rows, columns), case)
    if not head:
        return sum_of_linears(weight)
    ops = (
        SelectRows("selected", "x"),
        Logits("logits", "selected", "weight0", columns, rows, weight.scheme),
    )
    return after_embedding(ops, {"weight0": weight}, rows, columns)


def sum_of_linears(*linears: QuantizedTensor) -> Model:
    """All of them read the embedding of a token; their sum comes out as it is."""
    rows, columns = linears[0].shape
    weights: dict[str, Weight] = {"identity": np.eye(rows, dtype=np.float32)}
    ops, out = list[Op](), "y0"
    for index, weight in enumerate(linears):
        weights[f"weight{index}"] = weight
        name = f"weight{index}"
        ops.append(Linear(f"y{index}", "x", name, None, columns, rows, weight.scheme))
    for index in range(1, len(linears)):
        ops.append(Add(f"sum{index}", out, f"y{index}"))
        out = f"sum{index}"
    ops.append(SelectRows("selected", out))
    ops.append(Logits("logits", "selected", "identity", rows, rows, FloatScheme("float32")))
    return after_embedding(tuple(ops), weights, rows, columns)


def after_embedding(
    ops: tuple[Op, ...], weights: dict[str, Weight], rows: int, columns: int
) -> Model:
    table = np.random.default_rng(3).standard_normal((384, columns)).astype(np.float32)
    source = TinySource({"table": table * np.float32(3), **weights})
    sizes = DecoderSizes(1, columns, rows, 1, 1, 2, 384, 256)
    program = Program("llama", sizes, (Embed("x", "table", FloatScheme("float32")), *ops), False)
    return Model(Path("memory"), "huggingface", program, source, {}, None, None)


def alone(tokens: npt.NDArray[np.int32]) -> StepBatch:
    """Each token is a sequence of its own."""
    count = len(tokens)
    return StepBatch(
        tokens,
        np.zeros(count, np.int32),
        np.arange(count + 1, dtype=np.int32),
        1 + np.arange(count, dtype=np.int32)[:, None],
        np.arange(count, dtype=np.int32),
    )


def native(model: Model, **options: Any) -> CpuExecutor:
    return CpuExecutor(model, num_pages=100, page_size=8, **options)


def oracle(model: Model) -> TorchExecutor:
    return TorchExecutor(model, num_pages=50, page_size=8, dtype="float64")


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("head", [False, True], ids=["linear", "head"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_one_linear_equals_the_oracle(case: str, head: bool, isa: str, activations: str) -> None:
    """Inputs are the same to the bit, so only the order of the sums is left to differ in."""
    model = one_linear(CASES[case], head=head)
    expected = oracle(model).step(alone(TOKENS))
    found = native(model, instruction_set=isa, activations=activations).step(alone(TOKENS))
    weight, table = (model.weights.load(name) for name in ("weight0", "table"))
    assert isinstance(weight, QuantizedTensor) and isinstance(table, np.ndarray)
    size = np.abs(table[TOKENS]).sum(1, keepdims=True) * np.abs(weight.dequantize()).max()
    assert (np.abs(found - expected) <= 2 * 96 * UNIT * size).all()
    assert not np.allclose(found, table[TOKENS] @ weight.dequantize().T, atol=1e-4)


def whole_model(case: Make, **options: Any) -> Model:
    shapes = tiny_shapes(tiny_config("llama", **options))
    weights: dict[str, Weight] = {
        name: rounding_weight(shape, case, seed=index)
        for index, (name, shape) in enumerate(shapes.items())
        if name.endswith("_proj.weight")
    }
    return tiny_model("llama", weights=weights, **options)


def steps_of_inputs(case: Make) -> float:
    """Largest step between neighbouring levels, relative to a group's largest magnitude (about 4
    here, where values have size 1)."""
    numbers = case["activation"].numbers
    return {"int8": 1 / 127.5, "e4m3": 32 / 448, "e2m1": 2 / 6}[numbers] * 4


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_whole_models_follow_the_oracle(case: str, activations: str) -> None:
    """The executors' sums differ in their last bits; where that moves an input over the middle of
    two levels it moves by a whole step. In a model of one layer that is rare, and tokens that see
    only themselves do not pass it on: most agree as closely as if nothing were rounded, and none
    is further off than a step, which the layer passes on with a gain of about one."""
    model = whole_model(CASES[case], layers=1)
    expected = oracle(model).step(alone(TOKENS))
    found = native(model, activations=activations).step(alone(TOKENS))
    assert np.isfinite(found).all()
    roundings = sum(op.in_features for op in model.program.ops if isinstance(op, Linear | Logits))
    difference = np.abs(found - expected).max(1)
    tight = roundings * UNIT * np.abs(expected).max()
    assert np.median(difference) <= tight
    assert difference.max() <= steps_of_inputs(CASES[case])


@pytest.mark.parametrize("case", ["w8a8-dynamic", "fp8-block", "nvfp4", "w4a8-scattered"])
@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_company_chunks_and_threads_change_no_bit(case: str, activations: str) -> None:
    model = whole_model(CASES[case])
    order = np.arange(45, dtype=np.int32)
    pages = 1 + np.arange(6, dtype=np.int32)[None]
    whole = StepBatch(TOKENS, order, np.array([0, 45], np.int32), pages, order)
    expected = native(model, threads=1, activations=activations).step(whole).copy()
    busy = native(model, threads=2, max_step_tokens=4, activations=activations)
    pieces = []
    for start, end in ((0, 1), (1, 9), (9, 10), (10, 41), (41, 45)):
        part, rows = slice(start, end), np.arange(end - start, dtype=np.int32)
        # The same pages serve a stranger's token beside it.
        ids = np.append(TOKENS[part], 5).astype(np.int32)
        batch = StepBatch(
            ids,
            np.append(order[part], 0).astype(np.int32),
            np.array([0, end - start, end - start + 1], np.int32),
            np.concatenate([pages, pages + 10]),
            rows,
        )
        pieces.append(busy.step(batch).copy())
    np.testing.assert_array_equal(np.concatenate(pieces), expected)


@pytest.mark.parametrize("scattered", [False, True])
def test_linears_of_one_input_each_get_the_scale_of_their_own(scattered: bool) -> None:
    """Two neighbours share a rounded input when they agree, and only then."""
    case = {"group_size": 32, "scattered": scattered, "activation": STATIC8}
    first = rounding_weight((130, 96), case)
    same, other = (with_activation(first, STATIC8, scale) for scale in (0.03, 0.11))
    logits = {}
    for name, second in (("same", same), ("other", other)):
        model = sum_of_linears(first, second)
        expected = oracle(model).step(alone(TOKENS))
        logits[name] = native(model).step(alone(TOKENS)).copy()
        np.testing.assert_allclose(logits[name], expected, atol=1e-4)
    assert np.abs(logits["same"] - logits["other"]).max() > 0.1


def test_a_tied_table_rounds_the_input_of_the_head_alone() -> None:
    """An embedding is a row of the table as it is: only what the head multiplies is rounded."""
    table = rounding_weight((130, 96), CASES["w8a8-dynamic"])
    head = Logits("logits", "selected", "weight", 96, 130, table.scheme)
    ops = (Embed("x", "weight", table.scheme), SelectRows("selected", "x"), head)
    program = Program("llama", DecoderSizes(1, 96, 130, 1, 1, 2, 130, 256), ops, True)
    source = TinySource({"weight": table})
    model = Model(Path("memory"), "huggingface", program, source, {}, None, None)
    tokens = np.arange(45, dtype=np.int32)
    rows = torch.from_numpy(table.dequantize())
    rounded = round_input(rows[:45], InputRounding("int8")).numpy().astype(np.float64)
    expected = rounded @ rows.numpy().astype(np.float64).T
    for executor in (native(model), oracle(model)):
        np.testing.assert_allclose(executor.step(alone(tokens)), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(rounded - rows[:45].numpy()).max() > 1e-4


@pytest.mark.parametrize("make", [native, oracle])
def test_a_scale_for_a_whole_step_is_refused_before_a_weight_is_read(make: Any) -> None:
    case = {**CASES["w8a8-dynamic"], "activation": ActivationScheme("int8", PerTensor())}
    model = Model(**{**vars(one_linear(case)), "weights": None})
    with pytest.raises(UnsupportedModelError, match="weight0 asks for one input scale"):
        make(model)


def test_a_weight_that_holds_nan_is_named() -> None:
    model = one_linear(CASES["fp8-dynamic"])
    weight = model.weights.load("weight0")
    assert isinstance(weight, QuantizedTensor)
    weight.codes[3, 3] = 0x7F
    with pytest.raises(UnsupportedModelError, match="tensor weight0 holds NaN"):
        native(model)
