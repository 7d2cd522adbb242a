"""config.pbtxt: what Triton is told of a model, in the text form of its protobuf ModelConfig.

Fields, types and names are those of model_config.proto, the public description of the server.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["KIND_CPU", "KIND_GPU"]
DATA_TYPES: Mapping[str, str] = {
    "bool": "TYPE_BOOL",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "string": "TYPE_STRING",
}
ANY = -1
"""Of a dimension: whatever the request brings."""


@dataclass(frozen=True)
class TritonTensor:
    """An input or output. dims: the whole shape, because no batch dimension is added."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class TritonModel:
    """One model of a repository.

    backend: "python" or "onnxruntime"; platform: "tensorrt_plan"; one of the two. decoupled: a
    request may be answered in many responses. parameters: text for the backend.
    """

    name: str
    inputs: Sequence[TritonTensor]
    outputs: Sequence[TritonTensor]
    kind: Kind
    backend: str = ""
    platform: str = ""
    decoupled: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)

    def to_pbtxt(self) -> str:
        """The same text for the same model. Batches are the graph's or the scheduler's business,
        so max_batch_size is 0."""
        lines = [f"name: {_text(self.name)}"]
        lines += [f"backend: {_text(self.backend)}"] if self.backend else []
        lines += [f"platform: {_text(self.platform)}"] if self.platform else []
        lines += ["max_batch_size: 0"]
        for port in self.inputs:
            optional = ["optional: true"] if port.optional else []
            lines += _message("input", [*_tensor(port), *optional])
        for port in self.outputs:
            lines += _message("output", _tensor(port))
        gpus = ["gpus: 0"] if self.kind == "KIND_GPU" else []
        lines += _message("instance_group", ["count: 1", f"kind: {self.kind}", *gpus])
        if self.decoupled:
            lines += _message("model_transaction_policy", ["decoupled: true"])
        for key, value in sorted(self.parameters.items()):
            inner = _message("value", [f"string_value: {_text(value)}"])
            lines += _message("parameters", [f"key: {_text(key)}", *inner])
        lines += _message("version_policy", _message("latest", ["num_versions: 1"]))
        return "\n".join(lines) + "\n"


def _tensor(port: TritonTensor) -> list[str]:
    dims = ", ".join(map(str, port.dims))
    return [
        f"name: {_text(port.name)}",
        f"data_type: {DATA_TYPES[port.dtype]}",
        f"dims: [ {dims} ]",
    ]


def _message(name: str, lines: Iterable[str]) -> list[str]:
    return [f"{name} {{", *(f"  {line}" for line in lines), "}"]


def _text(value: str) -> str:
    """A quoted string; JSON's escapes are a part of those of protobuf's text form."""
    return json.dumps(value)
