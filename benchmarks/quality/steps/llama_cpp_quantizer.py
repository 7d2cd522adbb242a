"""llama.cpp's own quantizer: OUT FLOAT.gguf IMPORTANCE.npz TYPE THREADS.

Writes OUT/gguf/model.gguf.
"""

import argparse
import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

FILE_TYPES = {
    name: getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    for name in ("Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS")
}


def importance_entries(arrays: dict[str, Any]) -> Any:
    """The C array that ends with an empty entry. The caller keeps `arrays` alive."""
    entries = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()
    for entry, (name, values) in zip(entries, arrays.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("importance", type=Path)
    parser.add_argument("type", choices=FILE_TYPES)
    parser.add_argument("threads", type=int)
    args = parser.parse_args()
    with np.load(args.importance) as stored:
        arrays = {name: np.ascontiguousarray(stored[name], np.float32) for name in stored}
    entries = importance_entries(arrays)
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = args.threads, FILE_TYPES[args.type]
    params.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    target = args.out / "gguf" / "model.gguf"
    target.parent.mkdir()
    llama_cpp.llama_backend_init()
    code = llama_cpp.llama_model_quantize(
        str(args.model).encode(), str(target).encode(), ctypes.byref(params)
    )
    if code:
        raise RuntimeError(f"llama_model_quantize returned {code}")


if __name__ == "__main__":
    main()
