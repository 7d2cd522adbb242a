"""The demo model all the way: what tiny random models cannot show, a real one does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import coldpress
from compile.engine_file import read_facts
from compile.open_model import open_model
from compile.verify import verify
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, SamplingParams
from runtime.evaluation.protocol import chunk_batch
from runtime.loading import LoadedExecutor, load_executor
from runtime.text.tokenizer import load_tokenizer

pytestmark = [pytest.mark.demo_model]

PROMPTS = (
    "The capital of France is",
    "Water boils at",
    "Once upon a time, there was a",
    "def fibonacci(n):\n",
    "The three states of matter are",
    "In 1969, astronauts",
    "A good breakfast",
    "The opposite of hot is",
    "To sort a list in Python, you can",
    "Photosynthesis is the process by which",
)
ANSWER_TOKENS = 16
FLOAT32_NOISE = 2e-3
"""Thirty layers of float32 sums in another order, on logits of about ten."""
NOISE_SHARE = 0.15
"""llama.cpp rounds activations to 8 bits in blocks of 32: an error of max / 440, where a block's
largest value is about four times its mean square root. That is 0.01 at each of the 211 products in
a row, and 0.01 * sqrt(211) = 0.145 of the logits' spread is what may become of it."""
TIE_SIGMAS = 4 * 2**0.5
"""A choice between two logits that each carry that noise is open up to four of its deviations."""


@pytest.fixture(scope="module")
def pressed(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(int4 checkpoint, GGUF artifact)."""
    folder = tmp_path_factory.mktemp("real")
    coldpress.quantize(
        demo_checkpoint, folder / "int4", recipe="rtn-w4a16", overrides={"scales": "range"}
    )
    coldpress.build(folder / "int4", folder / "gguf")
    return folder / "int4", folder / "gguf"


@pytest.fixture(scope="module")
def prompts(pressed: tuple[Path, Path]) -> list[tuple[int, ...]]:
    tokenizer = load_tokenizer(open_model(pressed[1]))
    return [tuple(tokenizer.encode(prompt)) for prompt in PROMPTS]


def greedy(prompt: tuple[int, ...], name: str, max_tokens: int = ANSWER_TOKENS) -> Request:
    return Request(name, prompt, max_tokens, SamplingParams(temperature=0.0))


def answers(engine: Engine, requests: list[Request]) -> dict[str, list[int]]:
    """Every request's tokens, with the accounting checked after each step."""
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for event in engine.step():
            assert event.token_id is not None, event.error
            tokens[event.request_id].append(event.token_id)
        engine.check_integrity()
    return tokens


def test_sixteen_streams_in_a_small_pool_are_each_what_they_are_alone(
    pressed: tuple[Path, Path], prompts: list[tuple[int, ...]]
) -> None:
    rng = np.random.default_rng(0)
    words = np.concatenate([np.array(prompt) for prompt in prompts])
    requests = [
        greedy(tuple(map(int, rng.choice(words, size))), f"{size}", 24 + size % 13)
        for size in (1, 5, 7, 8, 9, 15, 16, 17, 23, 31, 32, 33, 40, 47, 55, 64)
    ]
    executor = load_executor(open_model(pressed[1]), num_pages=25, page_size=8, max_step_tokens=48)
    engine = Engine(executor, EngineOptions(max_step_tokens=48, max_running=16))
    together = answers(engine, requests)
    assert engine.stats.preemptions > 0, "the pool was meant to be too small for all of them"
    for request in requests:
        alone = answers(Engine(executor, EngineOptions(max_step_tokens=256)), [request])
        assert alone[request.request_id] == together[request.request_id]
    executor.close()


def all_logits(executor: LoadedExecutor, tokens: tuple[int, ...]) -> npt.NDArray[np.float32]:
    logits = executor.step(chunk_batch(executor, np.array(tokens, np.int32), 0, len(tokens)))
    return np.array(logits)


def test_transformers_computes_the_same_logits_from_the_checkpoint(
    pressed: tuple[Path, Path], prompts: list[tuple[int, ...]]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(pressed[0], dtype=torch.float32).eval()
    with torch.no_grad():
        expected = [theirs(torch.tensor([prompt])).logits[0].numpy() for prompt in prompts[:3]]
    for path in pressed:
        executor = load_executor(open_model(path), num_pages=9, page_size=32, exact=True)
        for prompt, logits in zip(prompts[:3], expected, strict=True):
            assert np.abs(all_logits(executor, prompt) - logits).max() < FLOAT32_NOISE
        executor.close()


@pytest.fixture
def llama(pressed: tuple[Path, Path]) -> Iterator[Any]:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = llama_cpp.Llama(
        str(pressed[1] / "model.gguf"), n_ctx=256, n_threads=2, logits_all=True, verbose=False
    )
    yield model
    model.close()


@pytest.mark.filterwarnings("ignore")
def test_llama_cpp_continues_ten_prompts_the_same_way(
    llama: Any, pressed: tuple[Path, Path], prompts: list[tuple[int, ...]]
) -> None:
    """Up to ties: along our own answer llama.cpp picks each token too, or one as good."""
    executor = load_executor(open_model(pressed[1]), num_pages=65, page_size=32, exact=True)
    ours = answers(Engine(executor), [greedy(p, str(i), 24) for i, p in enumerate(prompts)])
    same = 0
    for index, prompt in enumerate(prompts):
        text = (*prompt, *ours[str(index)])
        assert llama.tokenize(PROMPTS[index].encode(), add_bos=False) == list(prompt)
        llama.reset()
        llama.eval(list(text))
        logits = all_logits(executor, text)
        for place in range(len(prompt) - 1, len(text) - 1):
            theirs = int(np.argmax(llama.scores[place]))
            noise = float(np.std(llama.scores[place] - logits[place]))
            assert noise < NOISE_SHARE * np.std(logits[place]), (PROMPTS[index], place, noise)
            gap = logits[place].max() - logits[place, theirs]
            assert gap <= TIE_SIGMAS * noise, (PROMPTS[index], place, gap, noise)
            same += int(gap == 0)
    executor.close()
    assert same >= 0.9 * 24 * len(prompts), f"llama.cpp chose {same} of 240 tokens as we did"


def test_an_engine_holds_all_weights_packed(pressed: tuple[Path, Path], tmp_path: Path) -> None:
    """Built for GPUs that are not here; nothing of it is run."""
    pytest.importorskip("tensorrt_rtx", reason="the extra 'tensorrt' is not installed")
    coldpress.build(pressed[0], tmp_path / "engine", target="tensorrt:sm89+sm120")
    report = verify(tmp_path / "engine", pressed[0])
    assert report.failures == [] and set(report.counts) == {"equal"}
    facts = read_facts(tmp_path / "engine")
    assert facts.cards == ("sm89", "sm120") and facts.limits.context == 8192
    assert facts.packed_bytes < 120e6, "four bits in the layers, sixteen in the table"
    assert facts.packed_bytes < facts.engine_bytes < 1.25 * facts.packed_bytes
