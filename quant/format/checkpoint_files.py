"""The files of a Hugging Face directory: JSON and safetensors, and no path that leaves it."""

import json
from pathlib import Path
from typing import Any

from quant.format.errors import FileFormatError, InputError
from quant.format.safetensors_file import SafetensorsFile
from quant.format.safetensors_writer import INDEX_NAME

SINGLE_NAME = "model.safetensors"
MAX_JSON_BYTES = 100 << 20


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises InputError when it is missing."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise FileFormatError(path, f"is larger than {MAX_JSON_BYTES:,} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise FileFormatError(path, f"is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise FileFormatError(path, "is not a JSON object")
    return value


def read_inside(directory: Path, name: str) -> dict[str, Any]:
    """The JSON object in the file `name`, which must not be a link out of `directory`."""
    path = directory / name
    if path.exists():
        require_inside(directory, path)
    return read_json_object(path)


def open_files(path: Path) -> dict[str, SafetensorsFile]:
    """The file of every stored tensor, by tensor name; index and headers agree.

    Raises InputError for missing weights or pickles, FileFormatError for files that lie.
    """
    index = path / INDEX_NAME
    if index.exists():
        return _open_shards(path, index)
    if not (path / SINGLE_NAME).exists():
        raise InputError(_no_weights(path))
    file = SafetensorsFile(_inside(path, SINGLE_NAME, path))
    return dict.fromkeys(file.tensors, file)


def _open_shards(path: Path, index: Path) -> dict[str, SafetensorsFile]:
    weight_map = read_inside(path, index.name).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise FileFormatError(index, "'weight_map' is not a map of file names")
    if (path / SINGLE_NAME).exists() and SINGLE_NAME not in weight_map.values():
        raise FileFormatError(
            index, f"does not list '{SINGLE_NAME}' beside it; delete the stale one"
        )
    shards = {
        name: SafetensorsFile(_inside(path, name, index))
        for name in sorted(set(weight_map.values()))
    }
    for tensor, name in weight_map.items():
        if tensor not in shards[name].tensors:
            raise FileFormatError(index, f"tensor '{tensor}' is not in '{name}', as it should be")
    files: dict[str, SafetensorsFile] = {}
    for name, shard in shards.items():
        for tensor in shard.tensors:
            if weight_map.get(tensor) != name:
                raise FileFormatError(index, f"does not list tensor '{tensor}' of '{name}'")
            files[tensor] = shard
    return files


def _inside(directory: Path, name: str, source: Path) -> Path:
    """`directory / name` when that is a plain file there. Raises FileFormatError otherwise."""
    if not name.endswith(".safetensors") or Path(name).name != name or "\0" in name:
        raise FileFormatError(source, f"'{name}' is not the plain name of a safetensors file")
    path = directory / name
    if not path.exists():
        raise InputError(f"{path}: is missing, but {source.name} lists it")
    require_inside(directory, path)
    return path


def require_inside(directory: Path, path: Path) -> None:
    """Raise FileFormatError for a link that leads out of `directory`."""
    if not path.is_file() or not _target_is_allowed(directory, path):
        raise FileFormatError(path, "is no file inside the checkpoint directory")


def _target_is_allowed(directory: Path, path: Path) -> bool:
    """A link stays inside, or leads to the blobs of the Hugging Face cache around a snapshot."""
    real, home = path.resolve(), directory.resolve()
    if real.is_relative_to(home):
        return True
    return home.parent.name == "snapshots" and real.parent == home.parent.parent / "blobs"


def _no_weights(path: Path) -> str:
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles:
        return (
            f"{path}: '{pickles[0]}' is a pickle, which can run code and is never opened; "
            "convert the weights to safetensors first"
        )
    return f"{path}: holds no weights; '{SINGLE_NAME}' or '{INDEX_NAME}' is needed"
