"""Processor time of single steps in ONNX Runtime, ours and onnxruntime-genai's.

`python -m benchmarks.onnx_steps ARTIFACT ... [--genai MODEL]` prints, for each, the median of a
prompt of 256 tokens, of a token behind it, and of a token of each of 8 such sequences, all with one
thread and in turns, so that other work on the machine disturbs all of them alike. MODEL is a
directory that onnxruntime-genai's builder wrote; its package runs it, in this interpreter.
"""

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from compile.open_model import open_model
from runtime.engine.batch import StepBatch
from runtime.executors.onnx import OnnxExecutor

PROMPT, STREAMS, TOKENS = 256, 8, 8
PAGE_SIZE = 32
PAGES = -(-(PROMPT + TOKENS) // PAGE_SIZE)
Times = dict[str, list[float]]


class Subject(Protocol):
    """Something that is timed."""

    def round(self, times: Times) -> None:
        """One turn: adds processor seconds."""
        ...


def timed(times: Times, what: str, action: Callable[[], object]) -> None:
    begin = time.process_time()
    action()
    times.setdefault(what, []).append(time.process_time() - begin)


class Ours:
    """An artifact in the executor that serves it, without scheduler and sampler."""

    def __init__(self, artifact: Path) -> None:
        model, pages = open_model(artifact), 1 + STREAMS * PAGES
        self._executor = OnnxExecutor(model, num_pages=pages, page_size=PAGE_SIZE, threads=1)

    def round(self, times: Times) -> None:
        everyone = list(range(STREAMS))
        for stream in everyone:
            timed(times, "prompt", partial(self._step, 0, PROMPT, [stream]))
        for token in range(PROMPT, PROMPT + TOKENS):
            timed(times, "token", partial(self._step, token, 1, [0]))
            timed(times, f"{STREAMS} tokens", partial(self._step, token, 1, everyone))

    def _step(self, first: int, count: int, streams: list[int]) -> object:
        positions = np.tile(np.arange(first, first + count, dtype=np.int32), len(streams))
        starts = np.arange(len(streams) + 1, dtype=np.int32) * count
        own = 1 + np.array(streams)[:, None] * PAGES + np.arange(PAGES)
        tokens = (positions % 4000 + 10).astype(np.int32)
        batch = StepBatch(tokens, positions, starts, own.astype(np.int32), starts[1:] - 1)
        return self._executor.step(batch)


class Genai:
    """A model of onnxruntime-genai's builder, greedy."""

    def __init__(self, directory: Path) -> None:
        self._genai: Any = importlib.import_module("onnxruntime_genai")
        config = self._genai.Config(str(directory))
        options = {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = self._genai.Model(config)

    def round(self, times: Times) -> None:
        self._sequences(times, 1, "token")
        self._sequences(times, STREAMS, f"{STREAMS} tokens")

    def _sequences(self, times: Times, count: int, what: str) -> None:
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=512, batch_size=count, do_sample=False)
        generator = self._genai.Generator(self._model, params)
        prompt = np.tile(np.arange(PROMPT, dtype=np.int32) % 4000 + 10, (count, 1))
        prompts: Times = {}
        timed(prompts, "prompt", lambda: generator.append_tokens(prompt))
        if count == 1:
            times.setdefault("prompt", []).extend(prompts["prompt"])
        generator.generate_next_token()  # samples from what the prompt gave, and runs nothing
        for _ in range(TOKENS):
            timed(times, what, generator.generate_next_token)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", type=Path, nargs="*")
    parser.add_argument("--genai", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    subjects: dict[str, Subject] = {str(path): Ours(path) for path in asked.artifacts}
    if asked.genai is not None:
        subjects[f"genai {asked.genai}"] = Genai(asked.genai)
    found: dict[str, Times] = {name: {} for name in subjects}
    for _ in range(asked.rounds):
        for name, subject in subjects.items():
            subject.round(found[name])
    for name, times in found.items():
        shown = (f"{what} {1e3 * statistics.median(t):.2f} ms" for what, t in times.items())
        print(f"{name}: {', '.join(shown)}")


if __name__ == "__main__":
    main()
