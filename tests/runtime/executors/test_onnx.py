"""The ONNX executor against the oracle in float64, over schedules that mix everything."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from compile.open_model import open_model
from compile.to_onnx.build import build_model
from quant.format.errors import FileFormatError, InputError
from quant.format.scheme import IntScheme
from runtime.engine.batch import Executor, StepBatch
from runtime.executors.onnx import OnnxExecutor
from runtime.executors.torch import TorchExecutor
from runtime.graph_step import split
from tests.runtime.executors.onnx_models import (
    INT4,
    MIXED,
    NUM_PAGES,
    PAGE_SIZE,
    SCHEMES,
    TABLE,
    VERSION,
    model_and_artifact,
    random_tokens,
    rounding_bound,
    run_schedule,
    scattered_model,
    sequences_of,
    table_of,
)
from tests.tiny import LLAMA3, LONGROPE, YARN, tiny_model

# Large, so that a graph that forgets it is far outside the bounds.
EPS = 0.05
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tied": True}),
    "llama-bias-float16": ("llama", {"bias": True, "dtype": "float16"}),
    "llama-gelu-float32": ("llama", {"dtype": "float32", "hidden_act": "gelu_pytorch_tanh"}),
    "llama-one-kv-head-odd-vocab": ("llama", {"kv_heads": 1, "vocab": 389}),
    "llama-ungrouped": ("llama", {"kv_heads": 4}),
    "llama-llama3": ("llama", {"rope_scaling": LLAMA3}),
    "llama-yarn": ("llama", {"rope_scaling": YARN}),
    "mistral-window": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {}),
    "qwen2-late-window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3-bias-wide-heads": ("qwen3", {"bias": True, "head_dim": 32}),
    "gemma2": ("gemma2", {"layers": 3, "hidden_size": 96, "query_pre_attn_scalar": 40}),
    "gemma2-tied-float16": ("gemma2", {"tied": True, "dtype": "float16", "sliding_window": 2}),
    "gemma3": ("gemma3_text", {"layers": 3, "hidden_size": 96, "tied": True, "head_dim": 32}),
    "phi3": ("phi3", {"kv_heads": 1}),
    "phi3-longrope-window": ("phi3", {"rope_scaling": LONGROPE, "sliding_window": 7}),
    "mixtral": ("mixtral", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe-partly": ("qwen3_moe", {"mlp_only_layers": [0], "norm_topk_prob": False}),
}


def executor_of(model: Any, **options: Any) -> OnnxExecutor:
    options = {"exact": True, "threads": 1} | options
    return OnnxExecutor(model, num_pages=NUM_PAGES, page_size=PAGE_SIZE, **options)


def oracle(model: Any) -> TorchExecutor:
    return TorchExecutor(model, num_pages=NUM_PAGES, page_size=PAGE_SIZE, dtype="float64")


def assert_same(artifact: Any, tokens: Any, plan: Any, num_pages: int) -> None:
    options: dict[str, Any] = {"num_pages": num_pages, "page_size": PAGE_SIZE}
    expected = run_schedule(TorchExecutor(artifact, dtype="float64", **options), plan, tokens)
    found = run_schedule(OnnxExecutor(artifact, threads=1, exact=True, **options), plan, tokens)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() <= rounding_bound(artifact, theirs)


def assert_follows_the_oracle(directory: Path, *args: Any, **options: Any) -> None:
    model, artifact = model_and_artifact(directory, *args, rms_norm_eps=EPS, **options)
    sequences = sequences_of(MIXED)
    expected = run_schedule(oracle(model), MIXED, sequences)
    found = run_schedule(executor_of(artifact), MIXED, sequences)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        assert np.abs(ours - theirs).max() <= rounding_bound(model, theirs)


@pytest.mark.parametrize("case", FAMILIES)
def test_families_follow_the_oracle(case: str, tmp_path: Path) -> None:
    family, options = FAMILIES[case]
    assert_follows_the_oracle(tmp_path, family, **options)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_integers_follow_the_oracle(scheme: str, tmp_path: Path) -> None:
    assert_follows_the_oracle(tmp_path, "llama", scheme=SCHEMES[scheme])


@pytest.mark.parametrize("family", ["qwen2", "qwen3_moe"])
def test_integers_with_biases_or_experts_follow_the_oracle(family: str, tmp_path: Path) -> None:
    assert_follows_the_oracle(tmp_path, family, scheme=INT4)


@pytest.mark.parametrize("kind", ["symmetric", "zero_point"])
def test_scattered_columns_follow_the_oracle(kind: str, tmp_path: Path) -> None:
    model = scattered_model("qwen3", kind)
    build_model(model, tmp_path, version=VERSION)
    sequences = sequences_of(MIXED)
    expected = run_schedule(oracle(model), MIXED, sequences)
    found = run_schedule(executor_of(open_model(tmp_path)), MIXED, sequences)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() <= rounding_bound(model, theirs)


@pytest.mark.parametrize("scheme", ["int4-asymmetric", "int8-channel"])
@pytest.mark.parametrize("tied", [False, True])
def test_tables_of_integers_follow_the_oracle(scheme: str, tied: bool, tmp_path: Path) -> None:
    table = table_of(SCHEMES[scheme])
    assert_follows_the_oracle(tmp_path, "llama", weights={TABLE: table}, tied=tied, scheme=INT4)


@pytest.mark.parametrize(("scheme", "type_name"), [("int4", "int8"), ("int8-channel", "int4")])
def test_what_was_made_when_building_follows_its_own_numbers(
    scheme: str, type_name: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"scheme": SCHEMES[scheme], "type_name": type_name}
    _, artifact = model_and_artifact(tmp_path, "llama", **options)
    assert_same(artifact, [random_tokens(20, seed=1)], [[(0, 20)]], NUM_PAGES)


def test_integers_as_floats_follow_the_oracle(tmp_path: Path) -> None:
    scheme = SCHEMES["int4-asymmetric"]
    assert_follows_the_oracle(tmp_path, "qwen3", scheme=scheme, type_name="fp32")


def test_float16_follows_its_own_numbers(tmp_path: Path) -> None:
    """Weights are rounded once; nothing that is computed is."""
    _, artifact = model_and_artifact(tmp_path, "llama", dtype="float32", type_name="fp16")
    assert_same(artifact, [random_tokens(20, seed=1)], [[(0, 20)]], NUM_PAGES)


def test_company_and_chunks_move_a_row_by_roundings_alone(tmp_path: Path) -> None:
    """Not to the bit, as our own kernels are: ONNX Runtime's sums follow the step's shapes."""
    model, artifact = model_and_artifact(tmp_path, "mistral", sliding_window=7, scheme=INT4)
    sequences = sequences_of(MIXED)
    together = run_schedule(executor_of(artifact), MIXED, sequences)
    for sequence, tokens in enumerate(sequences):
        (alone,) = run_schedule(executor_of(artifact), [[(0, len(tokens))]], [tokens])
        gap = np.abs(alone - together[sequence]).max()
        assert gap <= 2 * rounding_bound(model, alone)


def test_serving_rounds_inputs_of_integers_and_comparing_does_not(tmp_path: Path) -> None:
    model, artifact = model_and_artifact(tmp_path, "llama", scheme=INT4)
    tokens = [random_tokens(20, seed=1)]
    plan = [[(0, 20)]]
    (expected,) = run_schedule(oracle(model), plan, tokens)
    (exact,) = run_schedule(executor_of(artifact), plan, tokens)
    (fast,) = run_schedule(executor_of(artifact, exact=False), plan, tokens)
    bound = rounding_bound(model, expected)
    assert np.abs(exact - expected).max() <= bound < np.abs(fast - expected).max()
    # A rounded input is off by at most 1/254 of its group's largest, so by a hundredth of its root
    # mean square; independent errors of the fourteen linears add up to less than a twentieth.
    assert np.square(fast - expected).mean() < 0.05**2 * np.square(expected).mean()


@pytest.mark.parametrize(
    ("family", "scheme", "table"),
    [
        ("llama", "int4", True),
        ("qwen2", "int8-channel", False),
        ("qwen3_moe", "int4-asymmetric", False),
    ],
)
def test_onnx_runtime_multiplies_every_integer_packed(
    family: str, scheme: str, table: bool, tmp_path: Path
) -> None:
    """Neither a bias nor the sum behind a linear keeps it from that, nor a table that is the head
    too: its looked up rows alone are unpacked."""
    weights = {TABLE: table_of(SCHEMES[scheme])} if table else {}
    model, _ = model_and_artifact(
        tmp_path, family, scheme=SCHEMES[scheme], tied=table, weights=weights
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options)
    optimized = onnx.load(options.optimized_model_filepath, load_external_data=False)
    found = [node.op_type for node in optimized.graph.node]
    quantized = [op for op in model.program.projections() if isinstance(op.scheme, IntScheme)]
    assert found.count("MatMulNBits") == len(quantized) >= 14
    assert found.count("DequantizeLinear") == int(table)


def whole(count: int, rows: list[int]) -> StepBatch:
    order = np.arange(count, dtype=np.int32)
    starts = np.array([0, count], np.int32)
    pages = 1 + np.arange(count // PAGE_SIZE + 1, dtype=np.int32)[None]
    return StepBatch(random_tokens(count, 5), order, starts, pages, np.array(rows, np.int32))


def test_only_the_asked_rows_come_back(tmp_path: Path) -> None:
    model, artifact = model_and_artifact(tmp_path, "llama")
    executor = executor_of(artifact)
    everything = executor.step(whole(11, list(range(11)))).copy()
    some = executor.step(whole(11, [0, 7, 10]))
    bound = 2 * rounding_bound(model, everything)
    assert np.abs(some - everything[[0, 7, 10]]).max() <= bound
    assert executor.step(whole(11, [])).shape == (0, executor.vocab_size)


def test_a_chunk_beside_single_tokens_is_two_parts(tmp_path: Path) -> None:
    chunk, others = 120, 6
    assert [len(part) for part in split(np.array([1] * others + [chunk]))] == [2, others - 1]
    _, artifact = model_and_artifact(tmp_path, "llama", scheme=INT4)
    tokens = [random_tokens(chunk, 0), *(random_tokens(2, s) for s in range(1, others + 1))]
    plan = [[(s, 1) for s in range(1, others + 1)], [(s, 1) for s in range(others, 0, -1)]]
    plan[1].insert(2, (0, chunk))
    assert_same(artifact, tokens, plan, num_pages=240)


def test_a_step_on_the_reserved_page_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    executor = executor_of(model_and_artifact(tmp_path, "llama")[1])
    batch = whole(5, [4])
    before = executor.step(batch).copy()
    with pytest.raises(AssertionError, match="reserved page 0"):
        executor.step(StepBatch(**{**vars(batch), "page_table": np.zeros((1, 2), np.int32)}))
    np.testing.assert_array_equal(executor.step(batch), before)


def test_it_is_an_executor_and_frees_what_it_holds(tmp_path: Path) -> None:
    _, artifact = model_and_artifact(tmp_path, "llama", max_positions=99)
    executor: Executor = executor_of(artifact)
    assert (executor.vocab_size, executor.max_positions) == (384, 99)
    assert (executor.page_size, executor.num_pages) == (PAGE_SIZE, NUM_PAGES)
    executor.close()
    with pytest.raises(AssertionError, match="closed"):
        executor.step(whole(3, [2]))


def test_a_model_of_another_container_is_refused() -> None:
    with pytest.raises(InputError, match="is no ONNX artifact; make one with: coldpress build"):
        executor_of(tiny_model())


def test_a_graph_that_onnx_runtime_refuses_is_one_sentence(tmp_path: Path) -> None:
    model_and_artifact(tmp_path, "llama", layers=1)
    path = tmp_path / "model.onnx"
    graph = onnx.load(str(path), load_external_data=False)
    graph.graph.node[5].input[0] = "nowhere"
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(FileFormatError, match=r"model.onnx: is not loaded by onnxruntime") as error:
        executor_of(open_model(tmp_path))
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_package_is_named_with_its_extra() -> None:
    program = (
        "import sys\nsys.modules['onnxruntime'] = None\n"
        "from quant.format.errors import MissingExtraError\n"
        "try:\n    import runtime.executors.onnx\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install 'coldpress[onnx]'" in done.stdout, done.stderr


def test_the_onnx_path_needs_no_torch() -> None:
    code = (
        "import sys, runtime.loading, runtime.executors.onnx, compile.to_onnx.build;"
        "sys.exit(any(name.split('.')[0] in ('torch', 'transformers') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
