"""What an unfinished run leaves for the next: finished layers, under the digest of all that they
depend on.

A layer depends on its own weights, on what is to be done with it, and on everything before it. So
its key is the digest of these and of the key of the layer before; a changed recipe finds the layers
that it does not touch, and none that it does.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from quant.format.errors import FileFormatError
from quant.format.safetensors_file import SafetensorsFile
from quant.format.staging import staged_file
from quant.format.tensor import GgmlBlocks, QuantizedTensor, WeightSource
from quant.rounding_algorithms.result import LayerResult, Rounded
from quant.tasks import LinearTask, RoundingSettings

_ARRAYS = ("codes", "scale", "zero_point", "minimum", "group_index")
_NUMBERS = ("global_scale", "input_scale")
_STATISTICS = (
    *("state", "damping", "dead_columns", "weight_error", "output_error", "clip_ratio"),
    *("condition", "tokens", "transform"),
)


def resume_directory(output: Path) -> Path:
    """Where the run that writes `output` keeps its finished layers."""
    return output.absolute().parent / f".{output.name}.resume"


class ResumeStore:
    """Finished layers in a directory. Each file appears whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def directory(self) -> Path:
        """Where everything is kept; it may not be there yet."""
        return self._directory

    def load(self, index: int, key: str, tasks: Mapping[str, LinearTask]) -> LayerResult | None:
        """The layer as it was saved under `key`, else None. tasks: its own, by module."""
        found = self._read(f"layer-{index:05d}", key)
        if found is None:
            return None
        arrays, record = found
        rounded = {
            module: _as_rounded(tasks[module], fields, arrays)
            for module, fields in record["modules"].items()
        }
        changed, added = ({n: arrays[n] for n in record[kind]} for kind in ("changed", "added"))
        return LayerResult(rounded, changed, added)

    def save(self, index: int, key: str, result: LayerResult) -> None:
        """Keep a finished layer; what was kept for it under another key goes."""
        arrays: dict[str, npt.NDArray[Any]] = {**result.changed, **result.added}
        modules = {}
        for module, rounded in result.rounded.items():
            modules[module] = _as_fields(module, rounded, arrays)
        names = {"changed": list(result.changed), "added": list(result.added)}
        record = {"modules": modules, **names}
        self._write(f"layer-{index:05d}", key, arrays, record)

    def load_state(self, key: str) -> dict[str, npt.NDArray[Any]] | None:
        """The activations as they were after the layer of `key`: views of a file, to be copied."""
        found = self._read("state", key, mapped=True)
        return None if found is None else found[0]

    def save_state(self, key: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep the activations after the layer of `key`; only the last ones are kept."""
        self._write("state", key, arrays, {})

    def load_tokens(self, key: str) -> tuple[npt.NDArray[Any], dict[str, Any]] | None:
        """Calibration tokens that took long to make, and what is known of them."""
        found = self._read("tokens", key)
        return None if found is None else (found[0]["tokens"], found[1])

    def save_tokens(self, key: str, tokens: npt.NDArray[Any], about: Mapping[str, Any]) -> None:
        """Keep calibration tokens."""
        self._write("tokens", key, {"tokens": tokens}, about)

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _write(
        self,
        kind: str,
        key: str,
        arrays: Mapping[str, npt.NDArray[Any]],
        record: Mapping[str, Any],
    ) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        described = {name: [array.dtype.name, array.shape] for name, array in arrays.items()}
        raw = {n: np.ascontiguousarray(a).reshape(-1).view(np.uint8) for n, a in arrays.items()}
        metadata = {"record": json.dumps(record), "arrays": json.dumps(described)}
        final = self._directory / f"{kind}-{key}.safetensors"
        with staged_file(final) as aside:
            save_arrays(raw, aside, metadata)
        for other in self._directory.glob(f"{kind}-*.safetensors"):
            if other != final:
                other.unlink(missing_ok=True)

    def _read(
        self, kind: str, key: str, mapped: bool = False
    ) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]] | None:
        path = self._directory / f"{kind}-{key}.safetensors"
        if not path.is_file():
            return None
        try:
            file = SafetensorsFile(path)
            record = json.loads(file.metadata["record"])
            load = partial(_mapped, file) if mapped else file.load
            arrays = {
                name: load(name).view(_dtype(dtype)).reshape(shape)
                for name, (dtype, shape) in json.loads(file.metadata["arrays"]).items()
            }
        except Exception as error:  # a damaged file may fail in any of these steps
            raise FileFormatError(path, f"is damaged ({error}); delete it and run again") from error
        return arrays, record


def save_arrays(
    arrays: Mapping[str, npt.NDArray[np.uint8]], path: Path, metadata: Mapping[str, str]
) -> None:
    """Bytes [n] by name as a safetensors file, straight from where they lie."""
    header: dict[str, Any] = {"__metadata__": metadata}
    begin = 0
    for name, array in arrays.items():
        end = begin + array.nbytes
        header[name] = {"dtype": "U8", "shape": [array.nbytes], "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.data)


def _mapped(file: SafetensorsFile, name: str) -> npt.NDArray[np.uint8]:
    info = file.tensors[name]
    return np.memmap(file.path, np.uint8, "r", info.begin, info.shape)


def first_key(parts: Iterable[str | bytes]) -> str:
    """The key that layer 0 follows: of all that every layer depends on."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:32]


def layer_keys(
    first: str,
    source: WeightSource,
    layers: Sequence[Sequence[str]],
    tasks: Mapping[str, LinearTask],
    settings: RoundingSettings,
) -> list[str]:
    """The key of each layer. layers: the names of each one's tensors in `source`."""
    keys, key = [], first
    described = {**asdict(settings), "allowed": None}
    for names in layers:
        mine = [repr(tasks[n.removesuffix(".weight")]) for n in names if _module(n) in tasks]
        parts: list[str | bytes] = [key, json.dumps(described, sort_keys=True, default=str), *mine]
        for name in names:
            value = source.load(name)
            assert not isinstance(value, QuantizedTensor)
            parts += [name, np.ascontiguousarray(value).reshape(-1).view(np.uint8).data.tobytes()]
        key = first_key(parts)
        keys.append(key)
    return keys


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _as_fields(
    module: str, rounded: Rounded, arrays: dict[str, npt.NDArray[Any]]
) -> dict[str, Any]:
    """What JSON holds of a module; its arrays are added to `arrays`."""
    tensor = rounded.tensor
    for name in _ARRAYS:
        array = getattr(tensor, name)
        if array is not None:
            arrays[f"{module}/{name}"] = array
    blocks = tensor.blocks
    if blocks is not None:
        arrays[f"{module}/blocks"] = blocks.data
    return {
        "tensor": {name: getattr(tensor, name) for name in _NUMBERS},
        "blocks": None if blocks is None else blocks.type_name,
        "statistics": {name: getattr(rounded, name) for name in _STATISTICS},
    }


def _as_rounded(
    task: LinearTask, fields: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
) -> Rounded:
    parts = {name: arrays.get(f"{task.module}/{name}") for name in _ARRAYS}
    blocks = None
    if fields["blocks"] is not None:
        blocks = GgmlBlocks(fields["blocks"], arrays[f"{task.module}/blocks"])
    tensor = QuantizedTensor(task.scheme, **parts, **fields["tensor"], blocks=blocks)  # type: ignore[arg-type]
    return Rounded(tensor, **fields["statistics"])


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else name)
