"""The sampling that a model's makers recommend, from generation_config.json."""

from typing import Any

from compile.model import Model
from runtime.text.tokenizer import read_json

_FIELDS = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
}


def load_sampling_defaults(model: Model) -> dict[str, Any]:
    """Fields of SamplingParams that generation_config.json sets; empty where there is no file.

    Raises FileFormatError for a file that is not JSON.
    """
    if model.directory is None:
        return {}
    config = read_json(model.directory / "generation_config.json")
    return {
        name: kind(config[name])
        for name, kind in _FIELDS.items()
        if isinstance(config.get(name), int | float) and not isinstance(config[name], bool)
    }
