"""Scores a checkpoint by vLLM on the CPU, as the probabilities that it gives a prompt's tokens.

It hands each out as an object of Python's, so windows of a few hundred tokens are what fits.
"""

import os

import numpy as np
import numpy.typing as npt

from benchmarks.quality.scores import Float32
from benchmarks.quality.steps.scoring import arguments, write_scores
from benchmarks.speed.vllm_cells import settings


class Reader:
    """A model in vLLM's engine."""

    def __init__(self, path: str, window: int) -> None:
        from vllm import LLM

        self._model = LLM(
            path,
            dtype="bfloat16",
            max_model_len=window + 1,
            max_num_seqs=1,
            max_logprobs=-1,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
        )
        self._vocab_size = int(self._model.model_config.get_vocab_size())

    def logits(self, window: npt.NDArray[np.int64]) -> Float32:
        from vllm import SamplingParams

        wanted = SamplingParams(
            max_tokens=1, temperature=0, detokenize=False, prompt_logprobs=-1, flat_logprobs=True
        )
        prompt = {"prompt_token_ids": window.tolist()}
        (answer,) = self._model.generate([prompt], wanted, use_tqdm=False)
        flat = answer.prompt_logprobs
        found = np.full((len(window) - 1, self._vocab_size), -np.inf, np.float32)
        for row in range(len(found)):  # the first token has none
            span = slice(flat.start_indices[row + 1], flat.end_indices[row + 1])
            found[row, flat.token_ids[span]] = flat.logprobs[span]
        if not np.isfinite(found).all():
            raise ValueError("vLLM gave out no probability for some tokens")
        return found


def main() -> None:
    args = arguments()
    os.environ.update(settings(args.threads))
    write_scores(args, Reader(str(args.model), len(np.load(args.scored)[0])).logits)


if __name__ == "__main__":
    main()
