"""Open a Hugging Face directory as a source of weights, quantized or not.

Nothing in the directory is trusted: no pickle, no code, no path that leaves it. A checkpoint opens
only when every stored tensor belongs to a weight that we can read.
"""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.format.awq import AwqCodec
from quant.format.checkpoint_files import (
    open_files,
    read_inside,
    read_json_object,
    require_inside,
)
from quant.format.codec import FLOAT_DTYPES, PackedWeight, StoresIntegers, WeightCodec
from quant.format.compressed_tensors import CompressedTensorsCodec
from quant.format.errors import FileFormatError, InputError, UnsupportedModelError
from quant.format.experts import split_stacked
from quant.format.fp8 import Fp8Codec
from quant.format.ggml_checkpoint import GgmlCodec
from quant.format.gptq import GptqCodec
from quant.format.kv_cache import KvCacheScheme, KvScales, find_kv_scales, load_kv_scales
from quant.format.safetensors_file import SafetensorsFile, TensorInfo
from quant.format.scheme import FloatScheme, Scheme
from quant.format.staging import is_staging
from quant.format.stored import FileBytes, StoredFloats, StoredIntegers
from quant.format.tensor import Weight

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)

__all__ = ["TEXT_FILES", "Checkpoint", "open_checkpoint", "read_json_object"]

_CODECS: Mapping[str, Callable[[Mapping[str, Any], str], WeightCodec]] = {
    "compressed-tensors": CompressedTensorsCodec,
    "gptq": GptqCodec,
    "awq": AwqCodec,
    "fp8": Fp8Codec,
    "ggml": GgmlCodec,
}
_PARAMETER = re.compile(
    r".*\.(qweight|qzeros|scales|g_idx|SCB|absmax|quant_map|[qkv]_scale"
    r"|weight_(packed|blocks|scale|scale_inv|zero_point|g_idx|shape|scale_2|global_scale)"
    r"|(input|output)_(scale|zero_point|global_scale)|activation_scale)$"
)


class Checkpoint:
    """A Hugging Face directory; implements `WeightSource`. Made by `open_checkpoint`."""

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        files: Mapping[str, SafetensorsFile],
        *,
        directory: Path | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """`files`: the opened file of every stored tensor, by tensor name. directory: where
        config.json and the files of the text side lie, if not at `path`. notes: what a user should
        know of how it was opened, a sentence each."""
        self.path = path
        self.directory = path if directory is None else directory
        self.notes = notes
        self.config = config
        self._files = files
        self._headers = {name: file.tensors[name] for name, file in files.items()}
        self._codec = _make_codec(self.quantization_config, path)
        found = self._codec.find(self._headers, self.load_raw) if self._codec else []
        self._packed = {f"{weight.module}.weight": weight for weight in found}
        self._kv_names = find_kv_scales(self._headers)
        self.kv_cache: KvCacheScheme | None = None
        if isinstance(self._codec, CompressedTensorsCodec):
            self.kv_cache = self._codec.kv_cache
        self._kv_scales = load_kv_scales(self._headers, self.load_raw, self.kv_cache, str(path))
        self._logical = self._logical_names()

    @property
    def quantization_config(self) -> dict[str, Any] | None:
        """The `quantization_config` of config.json, None for a float checkpoint."""
        return self.config.get("quantization_config")

    @property
    def quant_method(self) -> str | None:
        """E.g. "compressed-tensors", "gptq" or "awq"; None for a float checkpoint."""
        config = self.quantization_config
        return None if config is None else str(config.get("quant_method"))

    def names(self) -> Collection[str]:
        """Every logical tensor; a packed weight appears once as `X.weight`."""
        return self._logical

    def shape(self, name: str) -> tuple[int, ...]:
        packed = self._packed.get(name)
        return packed.shape if packed else self._header(name).shape

    def scheme(self, name: str) -> Scheme:
        packed = self._packed.get(name)
        return packed.scheme if packed else _float_scheme(self._header(name))

    def load(self, name: str) -> Weight:
        """Read one tensor: a QuantizedTensor, or a float array in its stored dtype.

        Raises FileFormatError naming the tensor when it is malformed.
        """
        packed = self._packed.get(name)
        if packed is None:
            return self.load_raw(name)
        assert self._codec is not None
        return self._codec.decode(packed, self.load_raw)

    def stored(self, name: str) -> StoredIntegers | None:
        """Integers as they lie in their file; None for what `load` has to make."""
        packed = self._packed.get(name)
        if packed is None or not isinstance(self._codec, StoresIntegers):
            return None
        return self._codec.stored(packed, self.load_raw, self._locate)

    def forget(self, name: str) -> None:
        """Files are not mapped: there is nothing to be dropped."""

    def floats(self, name: str) -> StoredFloats | None:
        """Where a float matrix lies; None for other tensors."""
        place = None if name in self._packed else self._locate(name)
        if place is None:
            return None
        header = self._header(name)
        return StoredFloats(header.dtype.name, (header.shape[0], header.shape[1]), place)

    def kv_scales(self, layer: int) -> KvScales | None:
        """Scales of the KV cache of decoder layer `layer`; None where none are stored.

        `kv_cache` says what the cache is rounded to; None when the checkpoint does not say.
        """
        return self._kv_scales.get(layer)

    def stored_bytes(self, name: str) -> int:
        """Bytes on disk of everything that a logical tensor is made of."""
        packed = self._packed.get(name)
        parts = packed.parts.values() if packed else [name]
        return sum(self._header(part).num_bytes for part in parts)

    def raw_names(self) -> Collection[str]:
        """Every stored tensor, as the files name it."""
        return self._headers.keys()

    def load_raw(self, name: str) -> npt.NDArray[Any]:
        """One stored tensor as it lies in its file."""
        self._header(name)
        return self._files[name].load(name)

    def files_of_weights(self) -> dict[str, SafetensorsFile]:
        """The opened file of every logical tensor; of the first part where it is packed."""
        first = {n: next(iter(w.parts.values())) for n, w in self._packed.items()}
        return {name: self._files[first.get(name, name)] for name in self._logical}

    def weight_files(self) -> list[Path]:
        """The safetensors files, sorted by name."""
        return sorted({file.path for file in self._files.values()})

    def files(self) -> list[Path]:
        """The files of the text side that exist: tokenizer, generation config, chat template.

        Raises FileFormatError for one that is a link out of the directory.
        """
        where = self.directory
        found = [where / name for name in TEXT_FILES if (where / name).is_file()]
        for path in found:
            require_inside(where, path)
        return found

    def _locate(self, name: str) -> FileBytes | None:
        self._header(name)
        return self._files[name].locate(name)

    def _header(self, name: str) -> TensorInfo:
        if name not in self._headers:
            raise FileFormatError(self.path, f"has no tensor '{name}'")
        return self._headers[name]

    def _logical_names(self) -> dict[str, None]:
        """Closes the books: each stored tensor is a float tensor, part of one packed weight or a
        scale of the KV cache."""
        owners: dict[str, PackedWeight] = {}
        for weight in self._packed.values():
            owners.update(dict.fromkeys(weight.parts.values(), weight))
        logical: dict[str, None] = {}
        for name, header in self._headers.items():
            if name in owners:
                logical[f"{owners[name].module}.weight"] = None
                continue
            if name in self._kv_names:
                continue
            if name in self._packed:
                raise FileFormatError(self.path, f"'{name}' is stored both packed and in full")
            if _PARAMETER.match(name):
                raise FileFormatError(
                    self.path, f"tensor '{name}' belongs to no quantized weight that we can read"
                )
            if header.dtype.name not in FLOAT_DTYPES:
                raise UnsupportedModelError(
                    f"{self.path}: tensor '{name}' has dtype {header.dtype.name}; "
                    "only float16, bfloat16 and float32 can be read here"
                )
            logical[name] = None
        return logical


def open_checkpoint(path: Path) -> Checkpoint:
    """Open and check a Hugging Face directory, reading headers only.

    Raises InputError when it is missing, incomplete, or holds pickle or code; FileFormatError when
    a file in it is malformed; UnsupportedModelError for a quantization that we cannot read.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: is not a directory; give the folder that holds config.json")
    if is_staging(path.resolve()):
        raise InputError(f"{path}: was left by an interrupted run; delete it and run again")
    config = read_inside(path, "config.json")
    if "auto_map" in config:
        raise InputError(
            f"{path / 'config.json'}: 'auto_map' asks to run code from the checkpoint, "
            "which is never done; use a checkpoint of a built-in architecture"
        )
    quantization = config.get("quantization_config")
    if quantization is not None and not isinstance(quantization, dict):
        raise FileFormatError(path / "config.json", "'quantization_config' is not an object")
    return Checkpoint(path, config, split_stacked(open_files(path), config))


def _make_codec(config: Mapping[str, Any] | None, path: Path) -> WeightCodec | None:
    if config is None:
        return None
    method = config.get("quant_method")
    if not isinstance(method, str) or method not in _CODECS:
        raise UnsupportedModelError(
            f"{path}: quantization method {method!r} is not supported; "
            f"readable are {', '.join(_CODECS)}"
        )
    return _CODECS[method](config, str(path))


def _float_scheme(header: TensorInfo) -> FloatScheme:
    name = np.dtype(header.dtype).name
    assert name in FLOAT_DTYPES
    return FloatScheme(name)  # type: ignore[arg-type]
