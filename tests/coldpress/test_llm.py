"""The Python API's model: batching changes nothing, and it works without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

import coldpress
from quant.format.errors import InputError
from runtime.engine.request import RequestError

PROMPTS = ["the press", "once upon a time", "one, two, three", "Café"]


def test_answers_together_are_answers_alone(tiny_gguf: Path) -> None:
    with coldpress.LLM(tiny_gguf, threads=1) as model:
        together = model.generate(PROMPTS, max_tokens=12)
        alone = [model.generate(prompt, max_tokens=12)[0] for prompt in PROMPTS]
    assert together == alone
    assert all(one.completion_tokens <= 12 for one in together)


def test_a_seed_makes_sampling_repeatable(tiny: Path) -> None:
    with coldpress.LLM(tiny, threads=1) as model:
        texts = {
            model.generate("the press", max_tokens=16, temperature=1.0, seed=seed)[0].text
            for seed in (1, 1, 2, 3)
        }
    assert 2 <= len(texts) <= 3


def test_chat_goes_through_the_template(tiny: Path) -> None:
    messages = [{"role": "user", "content": "the press"}]
    with coldpress.LLM(tiny, threads=1) as model:
        answer = model.chat(messages, max_tokens=6)
        rendered = "<|im_start|>user\nthe press<|im_end|>\n<|im_start|>assistant\n"
        assert model.generate(rendered, max_tokens=6)[0] == answer
        streamed = "".join(delta.text for delta in model.stream_chat(messages, max_tokens=6))
    assert streamed == answer.text


def test_a_stop_string_ends_the_answer(tiny: Path) -> None:
    with coldpress.LLM(tiny, threads=1) as model:
        whole = model.generate("the press", max_tokens=24)[0]
        stop = whole.text[5:8]
        cut = model.generate("the press", max_tokens=24, stop=stop)[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"


def test_prompts_that_do_not_fit_are_refused_before_any_runs(tiny: Path) -> None:
    with coldpress.LLM(tiny, threads=1, context=64) as model:
        with pytest.raises(RequestError, match="64"):
            model.generate(["fine", "press " * 100])
        assert len(model.generate("still fine", max_tokens=2)) == 1
    with pytest.raises(InputError, match="9999"):
        coldpress.LLM(tiny, context=9999)


WITHOUT_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "datasets"):
            raise ImportError(f"{name} is not installed", name=name)
sys.meta_path.insert(0, NoTorch())
from coldpress.cli import run
code = run(sys.argv[1:])
loaded = {"torch", "transformers", "datasets"} & set(sys.modules)
sys.exit(f"imported {loaded}" if loaded else code)
"""


@pytest.mark.parametrize(
    "args",
    [
        ["run", "{gguf}", "hello", "--max-tokens", "3"],
        ["run", "{model}", "hello", "--max-tokens", "3"],
        ["inspect", "{gguf}"],
        ["bench", "{gguf}", "--concurrency", "1", "--prompt-tokens", "4", "--output-tokens", "2"],
        ["build", "{model}", "-o", "{out}", "--target", "gguf"],
    ],
)
def test_serving_needs_no_torch(
    args: list[str], tiny: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    known = {"gguf": tiny_gguf, "model": tiny, "out": tmp_path / "out"}
    command = [sys.executable, "-c", WITHOUT_TORCH, *(part.format(**known) for part in args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["run", "{model}", "hello", "--backend", "torch"],
        ["quantize", "{model}", "-o", "{out}", "--recipe", "w4a16"],
    ],
)
def test_what_needs_torch_says_which_extra(args: list[str], tiny: Path, tmp_path: Path) -> None:
    known = {"model": tiny, "out": tmp_path / "out"}
    command = [sys.executable, "-c", WITHOUT_TORCH, *(part.format(**known) for part in args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "coldpress[quantize]" in done.stderr and len(done.stderr.splitlines()) == 1
