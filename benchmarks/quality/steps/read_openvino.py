"""Scores a model by OpenVINO's CPU plugin, which rounds inputs and its cache as it serves."""

import numpy as np
import numpy.typing as npt
import openvino

from benchmarks.quality.scores import Float32
from benchmarks.quality.steps.scoring import arguments, write_scores


class Reader:
    """A compiled model that remembers one sequence."""

    def __init__(self, path: str, threads: int) -> None:
        core = openvino.Core()
        compiled = core.compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": threads})
        self._inputs = {name for each in compiled.inputs for name in each.names}
        self._request = compiled.create_infer_request()

    def logits(self, window: npt.NDArray[np.int64]) -> Float32:
        tokens = window[None, :-1]
        self._request.reset_state()
        given = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "position_ids": np.arange(tokens.shape[1])[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.infer({name: given[name] for name in given if name in self._inputs})
        found: Float32 = self._request.get_tensor("logits").data[0].copy()
        return found


def main() -> None:
    args = arguments()
    write_scores(args, Reader(str(args.model / "openvino_model.xml"), args.threads).logits)


if __name__ == "__main__":
    main()
