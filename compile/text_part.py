"""The language model of a checkpoint that reads pictures too."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from quant.format.errors import InputError
from quant.format.kv_cache import KvCacheScheme, KvScales, kv_cache_of, kv_scales_of
from quant.format.scheme import Scheme
from quant.format.stored import HoldsFloats, HoldsIntegers, StoredFloats, StoredIntegers
from quant.format.tensor import Weight, WeightSource

TEXT_MODELS = {"gemma3": "gemma3_text"}
"""model_type of the whole, and of the part that `text_config` describes."""
RENAMED = {"language_model.": "", "model.language_model.": "model."}
"""Prefixes of the part's tensors, in files of today and of transformers' own modules."""
PICTURES = tuple(
    f"{outer}{inner}"
    for outer in ("", "model.")
    for inner in ("vision_tower.", "multi_modal_projector.")
)
SHARED = ("dtype", "torch_dtype", "quantization_config", "bos_token_id", "eos_token_id")
"""Keys that the whole's config may hold for the part's."""


@dataclass(frozen=True)
class TextWeights:
    """A WeightSource over some tensors of another, under the names that the text model gives them.
    `original`: the other's names by these."""

    source: WeightSource
    original: Mapping[str, str]

    def names(self) -> Collection[str]:
        return self.original.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(self.original[name])

    def scheme(self, name: str) -> Scheme:
        return self.source.scheme(self.original[name])

    def load(self, name: str) -> Weight:
        return self.source.load(self.original[name])

    def stored(self, name: str) -> StoredIntegers | None:
        """See HoldsIntegers."""
        source = self.source
        return source.stored(self.original[name]) if isinstance(source, HoldsIntegers) else None

    def forget(self, name: str) -> None:
        if isinstance(self.source, HoldsIntegers):
            self.source.forget(self.original[name])

    def floats(self, name: str) -> StoredFloats | None:
        """See HoldsFloats."""
        source = self.source
        return source.floats(self.original[name]) if isinstance(source, HoldsFloats) else None

    @property
    def kv_cache(self) -> KvCacheScheme | None:
        return kv_cache_of(self.source)

    def kv_scales(self, layer: int) -> KvScales | None:
        return kv_scales_of(self.source, layer)


def text_part(
    config: Mapping[str, Any], source: WeightSource
) -> tuple[Mapping[str, Any], WeightSource, tuple[str, ...]]:
    """(config, weights, notes) of the text model: the arguments, unless they are of a whole that
    also reads pictures. Tensors that belong to neither keep their names, and will be refused.

    Raises InputError when such a config holds no text_config.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in TEXT_MODELS:
        return config, source, ()
    inner = config.get("text_config")
    if not isinstance(inner, Mapping):
        raise InputError(f"the config of a {kind} model must hold a table 'text_config'")
    shared = {key: config[key] for key in SHARED if config.get(key) is not None}
    names = [name for name in source.names() if not name.startswith(PICTURES)]
    weights = TextWeights(source, {_renamed(name): name for name in names})
    left = len(source.names()) - len(names)
    note = f"{left} tensors that read pictures are left out: the text model alone is run"
    return shared | dict(inner) | {"model_type": TEXT_MODELS[kind]}, weights, (note,)


def _renamed(name: str) -> str:
    for prefix, other in RENAMED.items():
        if name.startswith(prefix):
            return other + name.removeprefix(prefix)
    return name
