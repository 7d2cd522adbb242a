"""Scores a model by coldpress's own executor, which rounds inputs and its cache as it serves."""

import numpy as np
import numpy.typing as npt

from benchmarks.quality.scores import Float32
from benchmarks.quality.steps.scoring import arguments, write_scores
from coldpress.loading import Machine, open_artifact, open_executor
from runtime.evaluation.protocol import chunk_batch


def main() -> None:
    args = arguments()
    longest = np.load(args.scored).shape[1]
    model, _ = open_artifact(args.model)
    executor = open_executor(model, Machine(threads=args.threads), tokens=longest)

    def logits(window: npt.NDArray[np.int64]) -> Float32:
        tokens, count = window.astype(np.int32), len(window) - 1
        found: Float32 = executor.step(chunk_batch(executor, tokens, 0, count, all_logits=True))
        return found

    write_scores(args, logits)


if __name__ == "__main__":
    main()
