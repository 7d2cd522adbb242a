"""OpenVINO GenAI's continuous batching: python -m benchmarks.speed.openvino_cells MODEL [THREADS]

MODEL is made by `optimum-cli export openvino -m CHECKPOINT --task text-generation-with-past
--weight-format int4 --sym --group-size 64 --ratio 1.0 MODEL`. Keys and values are in eight bits,
and inputs of linears rounded, as OpenVINO does unless told otherwise.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino
import openvino_genai

from benchmarks.speed.cells import REQUESTS, STEP_TOKENS, Times, measure

CACHE_GIGABYTES = 2


class Pipeline:
    """One model and its engine, which is stepped from here."""

    def __init__(self, path: str, threads: int) -> None:
        plan = openvino_genai.SchedulerConfig()
        plan.cache_size, plan.enable_prefix_caching = CACHE_GIGABYTES, False
        plan.max_num_batched_tokens, plan.max_num_seqs = STEP_TOKENS, REQUESTS
        plan.dynamic_split_fuse = True
        self._engine = openvino_genai.ContinuousBatchingPipeline(
            path, plan, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )

    def generate(self, prompts: Sequence[Sequence[int]], output: int) -> Times:
        limits = openvino_genai.GenerationConfig()
        limits.max_new_tokens = limits.min_new_tokens = output
        limits.ignore_eos, limits.do_sample = True, False
        tensors = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        times = Times(time.perf_counter(), [[] for _ in prompts])
        handles = [
            self._engine.add_request(number, tensor, limits)
            for number, tensor in enumerate(tensors)
        ]
        while self._engine.has_non_finished_requests():
            self._engine.step()
            now = time.perf_counter()
            for handle, came in zip(handles, times.tokens, strict=True):
                while handle.can_read():
                    came += [now] * sum(len(one.generated_ids) for one in handle.read().values())
        return times


def main(path: str, threads: int) -> None:
    vocab_size = json.loads((Path(path) / "config.json").read_text())["vocab_size"]
    pipeline = Pipeline(path, threads)
    print(json.dumps({"model": path, **measure(pipeline.generate, vocab_size)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2)
