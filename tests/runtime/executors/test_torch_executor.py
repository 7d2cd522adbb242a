"""The oracle against transformers, and against itself under every way of cutting the work."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM

from compile.model import Model
from runtime.engine.batch import Executor, StepBatch
from runtime.executors.torch import TorchExecutor, matmul_by_tiles
from tests.tiny import LLAMA3, LONGROPE, YARN, tiny_checkpoint, tiny_model

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tied": True}),
    "llama-bias": ("llama", {"bias": True}),
    "llama-ungrouped": ("llama", {"kv_heads": 4}),
    "llama-one-kv-head": ("llama", {"kv_heads": 1}),
    "llama-wide-heads": ("llama", {"head_dim": 32}),
    "llama-gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama-linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    "llama-llama3": ("llama", {"rope_scaling": LLAMA3}),
    "llama-yarn": ("llama", {"rope_scaling": YARN}),
    "llama-yarn-smooth": ("llama", {"rope_scaling": {**YARN, "truncate": False}}),
    "mistral": ("mistral", {}),
    "mistral-window": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tied": True, "kv_heads": 1}),
    "qwen2-late-window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3-tied-bias": ("qwen3", {"tied": True, "bias": True, "head_dim": 32}),
    "qwen3-yarn": ("qwen3", {"rope_scaling": {**YARN, "attention_factor": 1.5}}),
    "gemma2": ("gemma2", {"layers": 3, "head_dim": 32}),
    "gemma2-untied": ("gemma2", {"tied": False, "query_pre_attn_scalar": 40, "bias": True}),
    "gemma2-uncapped": (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None, "layer_types": None},
    ),
    "gemma3": ("gemma3_text", {"layers": 3, "head_dim": 32}),
    "gemma3-linear": ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "gemma3-capped": ("gemma3_text", {"final_logit_softcapping": 2.0, "tied": True}),
    "phi3": ("phi3", {}),
    "phi3-tied-window": ("phi3", {"tied": True, "sliding_window": 7, "kv_heads": 1}),
    "phi3-longrope": ("phi3", {"rope_scaling": LONGROPE}),
    "mixtral": ("mixtral", {}),
    "mixtral-window": ("mixtral", {"sliding_window": 7, "num_experts_per_tok": 1}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe-partly": ("qwen3_moe", {"mlp_only_layers": [0], "norm_topk_prob": False}),
}
TOKENS = 40
# Large, so that an executor that forgets it is far outside the bounds.
EPS = 0.05

Plan = Sequence[Sequence[tuple[int, int]]]
"""For each step, the sequences that take part and how many tokens each of them runs."""


def random_tokens(count: int, seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, 384, count)]


def run_plan(
    executor: Executor, sequences: Sequence[Sequence[int]], plan: Plan, seed: int = 0
) -> list[npt.NDArray[np.float32]]:
    """Logits of every token of every sequence; pages are dealt out in a scrambled order."""
    places = 1 + max(map(len, sequences)) // executor.page_size
    pages = np.random.default_rng(seed).permutation(np.arange(1, executor.num_pages))
    table = pages[: places * len(sequences)].reshape(len(sequences), places).astype(np.int32)
    done = [0] * len(sequences)
    logits: list[list[npt.NDArray[np.float32]]] = [[] for _ in sequences]
    for step in plan:
        ids = [t for s, n in step for t in sequences[s][done[s] : done[s] + n]]
        positions = [p for s, n in step for p in range(done[s], done[s] + n)]
        starts = np.cumsum([0, *(n for _, n in step)])
        rows = executor.step(
            StepBatch(
                np.array(ids, np.int32),
                np.array(positions, np.int32),
                starts.astype(np.int32),
                table[[s for s, _ in step]],
                np.arange(len(ids), dtype=np.int32),
            )
        )
        for place, (s, n) in enumerate(step):
            logits[s].append(np.array(rows[starts[place] : starts[place + 1]]))
            done[s] += n
    return [np.concatenate(parts) for parts in logits]


def oracle(model: Model, page_size: int = 4, num_pages: int = 64) -> TorchExecutor:
    return TorchExecutor(model, num_pages=num_pages, page_size=page_size)


def rounding_bound(model: Model, logits: npt.NDArray[np.float32]) -> float:
    """Worst accumulated rounding: every sum of n terms is off by at most n units in the last place
    of its largest partial sum, and the sums along the longest path through the decoder add up."""
    sizes = model.program.sizes
    width = sizes.heads * sizes.head_dim
    layer = 3 * sizes.hidden_size + sizes.head_dim + TOKENS + width + sizes.intermediate_size
    path = sizes.layers * layer + 2 * sizes.hidden_size
    return float(path * 2.0**-24 * np.abs(logits).max())


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case: str, tmp_path: Path) -> None:
    family, options = CASES[case]
    options = {"dtype": "float32", "rms_norm_eps": EPS, **options}
    tiny_checkpoint(tmp_path, family, **options)
    reference = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype="float32", attn_implementation="eager"
    )
    tokens = random_tokens(TOKENS, seed=1)
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()

    model = tiny_model(family, **options)
    (logits,) = run_plan(oracle(model), [tokens], [[(0, TOKENS)]])

    assert np.abs(logits - expected).max() < rounding_bound(model, expected)


@pytest.mark.parametrize(
    "case", ["llama", "mistral-window", "qwen2-late-window", "qwen3-yarn", "qwen3_moe"]
)
def test_a_row_is_the_same_however_the_work_is_cut(case: str) -> None:
    family, options = CASES[case]
    model = tiny_model(family, **options)
    sequences = [random_tokens(n, seed=n) for n in (23, 40, 1, 9)]
    alone = [run_plan(oracle(model), [tokens], [[(0, len(tokens))]])[0] for tokens in sequences]
    by_token: Plan = [
        [(s, 1) for s, tokens in enumerate(sequences) if step < len(tokens)] for step in range(40)
    ]
    chunks: Plan = [
        [(1, 17), (0, 5)],
        [(3, 8), (0, 1), (1, 3)],
        [(0, 17), (2, 1), (3, 1), (1, 20)],
    ]
    for plan, page_size in ((by_token, 4), (chunks, 4), (chunks, 32)):
        together = run_plan(oracle(model, page_size), sequences, plan, seed=page_size)
        for expected, rows in zip(alone, together, strict=True):
            np.testing.assert_array_equal(rows, expected)


def test_a_product_of_one_row_does_not_depend_on_the_others() -> None:
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(29, 576, generator=random), torch.randn(96, 576, generator=random)
    together = matmul_by_tiles(x, weight)
    for start, end in ((0, 1), (7, 8), (3, 20), (28, 29), (13, 29)):
        assert torch.equal(matmul_by_tiles(x[start:end], weight), together[start:end])
    bound = 2 * 576 * 2.0**-24 * float((x.abs() @ weight.abs().T).max())
    assert float((together - x @ weight.T).abs().max()) < bound
    assert matmul_by_tiles(x[:0], weight).shape == (0, 96)


def test_a_window_hides_what_lies_before_it() -> None:
    model = tiny_model("mistral", layers=1, sliding_window=6)
    first, second = random_tokens(20, seed=1), random_tokens(20, seed=2)
    second[14:] = first[14:]
    a, b = run_plan(oracle(model), [first, second], [[(0, 20), (1, 20)]])
    np.testing.assert_array_equal(a[19], b[19])
    assert (a[18] != b[18]).any()


def test_only_the_asked_rows_come_back_and_the_pool_keeps_the_rest() -> None:
    model = tiny_model("llama")
    tokens = random_tokens(12, seed=3)
    (expected,) = run_plan(oracle(model), [tokens], [[(0, 12)]])
    batch = StepBatch(
        np.array(tokens, np.int32),
        np.arange(12, dtype=np.int32),
        np.array([0, 12], np.int32),
        np.array([[3, 9, 2]], np.int32),
        np.array([4, 11], np.int32),
    )
    executor = oracle(model)
    rows = executor.step(batch)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, expected[[4, 11]])
    none = StepBatch(
        batch.token_ids,
        batch.positions,
        batch.query_starts,
        batch.page_table,
        np.array([], np.int32),
    )
    assert executor.step(none).shape == (0, executor.vocab_size)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.1.mlp.down_proj.weight"),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.2.w2.weight"),
    ],
)
def test_quantized_weights_are_worth_their_dequantized_numbers(family: str, name: str) -> None:
    from quant.format.scheme import IntScheme, PerGroup
    from quant.format.tensor import QuantizedTensor

    random = np.random.default_rng(0)
    stored = QuantizedTensor(
        IntScheme(4, False, PerGroup(32)),
        random.integers(-8, 8, (64, 128), dtype=np.int8),
        random.uniform(0.01, 0.02, (64, 4)).astype(np.float16),
        random.integers(-8, 8, (64, 4), dtype=np.int8),
    )
    tokens = random_tokens(10, seed=4)
    plan = [[(0, 10)]]
    (quantized,) = run_plan(oracle(tiny_model(family, weights={name: stored})), [tokens], plan)
    plain = tiny_model(family, weights={name: stored.dequantize()})
    (dequantized,) = run_plan(oracle(plain), [tokens], plan)
    np.testing.assert_array_equal(quantized, dequantized)


def test_it_is_an_executor_and_frees_what_it_holds() -> None:
    executor: Executor = oracle(tiny_model("llama", max_positions=99), page_size=8, num_pages=5)
    assert (executor.vocab_size, executor.max_positions) == (384, 99)
    assert (executor.page_size, executor.num_pages) == (8, 5)
    executor.close()
    assert executor.num_pages == 0
