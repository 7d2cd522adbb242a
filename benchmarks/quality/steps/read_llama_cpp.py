"""Scores a GGUF file by llama.cpp: OUT MODEL.gguf BASELINE SCORED.npy THREADS.

With a float32 cache and plain attention, so that weights and the rounding of activations that their
type brings are all that differs from the float model.
"""

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from benchmarks.quality.steps.scoring import arguments, write_scores


class Reader:
    """A model and a context that holds one window."""

    def __init__(self, path: Path, window: int, threads: int) -> None:
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise ValueError(f"{path}: llama.cpp does not load it")
        self.context = llama_cpp.llama_init_from_model(self.model, _settings(window, threads))
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def logits(self, window: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Float32 [tokens - 1, vocab]. They stand in llama.cpp's memory until the next call."""
        count = len(window) - 1
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        batch = llama_cpp.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for i, token in enumerate(window[:-1]):
            batch.token[i], batch.pos[i], batch.logits[i] = int(token), i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        code = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        pointer = llama_cpp.llama_get_logits(self.context)
        return np.ctypeslib.as_array(pointer, shape=(count, self.vocab))


def _settings(window: int, threads: int) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = window
    params.n_ubatch = min(window, 512)
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return params


def main() -> None:
    args = arguments()
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    longest = np.load(args.scored).shape[1]
    write_scores(args, Reader(args.model, longest, args.threads).logits)


if __name__ == "__main__":
    main()
