"""A model's structure without its weights, and the few weights that are needed at a time.

The structure comes from transformers (never from code beside the checkpoint), with parameters on
the meta device: shapes, no memory. Buffers that the config determines, such as rotary frequencies,
are real.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from quant.experts import find_routers, split_experts
from quant.extras import require
from quant.format.errors import UnsupportedModelError
from quant.format.scheme import FloatScheme, Scheme
from quant.format.tensor import QuantizedTensor, WeightSource
from quant.tasks import FloatDtype

_COMPUTE_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float32, "float32": torch.float32}
"""float16 is computed in float32: processors are slow at it and its sums overflow."""


@dataclass(frozen=True)
class Skeleton:
    """model: the causal LM; layers: its decoder layers, whose names begin with `layers_name`."""

    model: Any
    layers: torch.nn.ModuleList
    layers_name: str
    compute_dtype: torch.dtype

    def linears(self) -> dict[str, torch.nn.Linear]:
        """Every Linear of the decoder layers but routers, by module name, in layer order."""
        routers = set(self.routers())
        linears = {
            f"{self.layers_name}.{name}": module
            for name, module in self.layers.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        return {name: module for name, module in linears.items() if name not in routers}

    def routers(self) -> list[str]:
        """Names of the modules that choose and weigh experts."""
        return [f"{self.layers_name}.{name}" for name in find_routers(self.layers)]

    def layer_name(self, index: int) -> str:
        return f"{self.layers_name}.{index}"

    def outer_parameters(self) -> list[str]:
        """Names of the parameters outside the decoder layers, without the output head."""
        inside = f"{self.layers_name}."
        head = self.head_name()
        return [
            name
            for name, _ in self.model.named_parameters()
            if not name.startswith(inside) and name != head
        ]

    def embeddings_name(self) -> str:
        """Module name of the token table."""
        table = self.model.get_input_embeddings()
        return next(str(name) for name, module in self.model.named_modules() if module is table)

    def head_name(self) -> str | None:
        """Parameter name of the output head, None when it is the embedding table."""
        head = self.model.get_output_embeddings()
        return next((n for n, p in self.model.named_parameters() if p is head.weight), None)

    def outer_linears(self) -> list[str]:
        """Module names of the Linears outside the decoder layers: the output head, as a rule."""
        inside = f"{self.layers_name}."
        return [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, torch.nn.Linear) and not name.startswith(inside)
        ]

    def tied_names(self) -> dict[str, str]:
        """Tensors that share another's storage, with the name of the one that is stored."""
        return dict(self.model.all_tied_weights_keys)

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each parameter and persistent buffer, a tied one once."""
        tied = self.tied_names()
        return {
            name: tuple(tensor.shape)
            for name, tensor in self.model.state_dict().items()
            if name not in tied
        }

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)


def build_skeleton(directory: Path, config: Mapping[str, Any]) -> Skeleton:
    """The structure of the checkpoint in `directory`, whose config.json holds `config`.

    Raises UnsupportedModelError for what transformers does not know as a plain decoder.
    """
    dtype = _COMPUTE_DTYPES[weight_dtype(config)]
    model = _build_on_meta(directory, config, dtype)
    layers_name, layers = _find_layers(directory, model)
    split_experts(model, layers)
    return Skeleton(model, layers, layers_name, dtype)


def weight_dtype(config: Mapping[str, Any]) -> FloatDtype:
    """The type that the checkpoint declares, which scales are stored in too."""
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    dtype = dtype.removeprefix("torch.")
    if dtype not in _COMPUTE_DTYPES:
        known = ", ".join(sorted(_COMPUTE_DTYPES))
        raise UnsupportedModelError(f"config.json: dtype {dtype!r} is not one of {known}")
    return cast(FloatDtype, dtype)


def _build_on_meta(directory: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    transformers = require("transformers", "quantizing")
    accelerate = require("accelerate", "quantizing")
    kind = config.get("model_type")
    try:
        parsed = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False)
        if "tie_word_embeddings" in config:  # a rotation unties what the file ties
            parsed.get_text_config().tie_word_embeddings = config["tie_word_embeddings"]
        if "quantization_config" not in config:  # the source is taken for what it stands for
            parsed.__dict__.pop("quantization_config", None)
        with torch.random.fork_rng(devices=[]), accelerate.init_empty_weights():
            model = transformers.AutoModelForCausalLM.from_config(
                parsed,
                dtype=dtype,
                attn_implementation=_attention_kind(parsed),
                trust_remote_code=False,
            )
    except Exception as error:  # what a bad config raises differs from family to family
        raise UnsupportedModelError(
            f"{directory}: model_type {kind!r} is not a decoder that transformers "
            f"{transformers.__version__} can build ({_first_line(error)})"
        ) from error
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    return model


def _attention_kind(config: Any) -> str:
    """torch's fused attention drops a limit to the scores without a word."""
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return "eager" if capped else "sdpa"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _find_layers(directory: Path, model: Any) -> tuple[str, torch.nn.ModuleList]:
    """The one ModuleList with as many children as the config has decoder layers."""
    count = model.config.get_text_config().num_hidden_layers
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    outermost = [(n, m) for n, m in found if not any(n.startswith(f"{o}.") for o, _ in found)]
    if len(outermost) != 1:
        raise UnsupportedModelError(
            f"{directory}: found {len(outermost)} lists of {count} decoder layers where one is "
            "expected; only plain decoder-only models can be quantized"
        )
    return outermost[0]


def to_torch(array: Any) -> torch.Tensor:
    """A torch view of a numpy array; ml_dtypes.bfloat16 becomes torch.bfloat16."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


def to_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The same numbers as an array; torch.bfloat16 becomes ml_dtypes' bfloat16."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: npt.NDArray[Any] = tensor.numpy()
    return array


def to_dtype(scheme: Scheme) -> torch.dtype:
    """torch's name for the type of a float tensor; float32 for what is quantized."""
    name = scheme.dtype if isinstance(scheme, FloatScheme) else "float32"
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[name]


def load_float(source: WeightSource, name: str) -> torch.Tensor:
    """A float tensor of the source. Raises UnsupportedModelError when it is quantized already."""
    value = source.load(name)
    if isinstance(value, QuantizedTensor):
        raise UnsupportedModelError(
            f"{name}: is already quantized ({value.scheme}); quantize from the original checkpoint"
        )
    return to_torch(value)


def set_parameter(root: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    """Put `value` in place of the parameter `name` under `root`."""
    owner, _, leaf = name.rpartition(".")
    module = root.get_submodule(owner)
    module._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)


@contextmanager
def loaded(
    root: torch.nn.Module, names: dict[str, str], source: WeightSource, dtype: torch.dtype
) -> Iterator[None]:
    """While the block runs, the parameters `names` (under root -> in the source) are real."""
    for name, source_name in names.items():
        value = load_float(source, source_name)
        expected = tuple(root.get_parameter(name).shape)
        if tuple(value.shape) != expected:
            raise UnsupportedModelError(
                f"{source_name}: has shape {list(value.shape)} where config.json says "
                f"{list(expected)}"
            )
        set_parameter(root, name, value.to(dtype))
    try:
        yield
    finally:
        for name in names:
            empty = torch.empty_like(root.get_parameter(name), device="meta")
            set_parameter(root, name, empty)
