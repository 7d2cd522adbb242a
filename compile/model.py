"""A model as the runtime and the targets see it, whatever container it came in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compile.program import Program
from quant.format.tensor import WeightSource


@dataclass(frozen=True)
class Model:
    """A Program bound to its weights and to the files that its text side needs.

    kind: "tensorrt" is a TensorRT engine beside the ONNX graph and the weights it was built from;
        these are what `weights` reads.
    config: the Hugging Face config.json (an ONNX artifact keeps it), or its equivalent translated
        from GGUF metadata.
    directory: holds tokenizer.json, generation_config.json and the chat template, where the model
        came as a directory; None for a bare GGUF file.
    gguf_metadata: every key of a GGUF file's header, None for other kinds.
    notes: sentences about what loading had to do (a type dequantized to float, for example).
    """

    path: Path
    kind: Literal["huggingface", "gguf", "onnx", "tensorrt"]
    program: Program
    weights: WeightSource
    config: Mapping[str, Any]
    directory: Path | None
    gguf_metadata: Mapping[str, Any] | None
    notes: tuple[str, ...] = ()
