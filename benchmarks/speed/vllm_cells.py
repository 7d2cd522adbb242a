"""vLLM on the CPU: python -m benchmarks.speed.vllm_cells MODEL [THREADS]

MODEL is a checkpoint; symmetric int4 of compressed-tensors runs in zentorch's kernels where that is
installed (the log then names ZentorchWNA16LinearKernel), in groups of 64 and more.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed.cells import LONGEST, REQUESTS, Times, measure


def settings(threads: int) -> dict[str, str]:
    """Of its environment. It compiles as it loads, with the tools of its own environment."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return {
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(str(core) for core in cores),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


class Vllm:
    """One model and its engine, whose steps are waited for here."""

    def __init__(self, path: str) -> None:
        from vllm import LLM

        model = LLM(
            path,
            dtype="bfloat16",
            max_model_len=2 * LONGEST,
            max_num_seqs=REQUESTS,
            enable_prefix_caching=False,
        )
        self._engine = model.llm_engine
        self.vocab_size = int(model.model_config.get_vocab_size())

    def generate(self, prompts: Sequence[Sequence[int]], output: int) -> Times:
        from vllm import SamplingParams

        wanted = SamplingParams(max_tokens=output, ignore_eos=True, temperature=0, detokenize=False)
        times = Times(time.perf_counter(), [[] for _ in prompts])
        for number, prompt in enumerate(prompts):
            self._engine.add_request(str(number), {"prompt_token_ids": list(prompt)}, wanted)
        while self._engine.has_unfinished_requests():
            answers = self._engine.step()
            now = time.perf_counter()
            for answer in answers:
                came = times.tokens[int(answer.request_id)]
                came += [now] * (len(answer.outputs[0].token_ids) - len(came))
        return times


def main(path: str, threads: int) -> None:
    os.environ.update(settings(threads))
    vllm = Vllm(path)
    print(json.dumps({"model": path, **measure(vllm.generate, vllm.vocab_size)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2)
