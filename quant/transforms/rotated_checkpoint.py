"""A float checkpoint seen through a rotation of its residual stream and of its value heads.

The part of QuaRot that is free when the model runs (Ashkboos et al., "QuaRot: Outlier-Free 4-Bit
Inference in Rotated LLMs", NeurIPS 2024, 4.1): norm gains move into the linears that follow, which
leaves norms that commute with a rotation; then everything that writes to the residual is rotated,
and everything that reads it rotates back.
"""

import re
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.format.checkpoint import Checkpoint
from quant.format.errors import FileFormatError, UnsupportedModelError
from quant.format.scheme import Scheme
from quant.format.tensor import Weight
from quant.transforms.layouts import Layout, layout_of
from quant.transforms.rotation import Rotation, random_rotation

Wide = npt.NDArray[np.float64]

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_FINAL_NORM = "model.norm.weight"
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_CHUNK_ELEMENTS = 1 << 22
_UNTOUCHED = ("self_attn.q_norm", "self_attn.k_norm")
_DERIVED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


class RotatedCheckpoint(Checkpoint):
    """The same model with other numbers: float tensors in the dtypes of the source.

    Every product is taken in float64 and rounded once. Embeddings that served as output head too
    cannot any more: the head becomes a tensor of its own, and `config` says so.
    """

    def __init__(self, source: Checkpoint, seed: int) -> None:
        """Raises UnsupportedModelError for a model whose residual cannot be rotated, naming the
        first tensor whose part in it is not known."""
        config = {**source.config, "tie_word_embeddings": False}
        super().__init__(source.path, config, source._files, directory=source.directory)
        self._layout = _rotatable(source)
        self._tied = _HEAD not in source.names() or bool(source.config.get("tie_word_embeddings"))
        hidden = int(config["hidden_size"])
        self._head_dim = int(config.get("head_dim") or hidden // config["num_attention_heads"])
        self._seed = seed
        self._residual = random_rotation(hidden, seed, 0)
        for name in source.names():
            self._require_known(name)

    @property
    def residual(self) -> Rotation:
        """The rotation of the residual stream."""
        return self._residual

    def names(self) -> Collection[str]:
        names = dict.fromkeys(super().names())
        return {**names, _HEAD: None}.keys() if self._tied else names.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return super().shape(self._stored_name(name))

    def scheme(self, name: str) -> Scheme:
        return super().scheme(self._stored_name(name))

    def stored_bytes(self, name: str) -> int:
        return super().stored_bytes(self._stored_name(name))

    def load(self, name: str) -> Weight:
        return self.load_raw(name)

    def load_raw(self, name: str) -> npt.NDArray[Any]:
        """The tensor as the rotated model has it."""
        values = self._load_stored(name)
        change = self._change(name)
        if change is None:
            return values
        if values.ndim == 1:
            return change(values.astype(np.float64)).astype(values.dtype)
        if self._mixes_rows(name):
            return change(values.astype(np.float64)).astype(values.dtype)
        result = np.empty_like(values)
        rows = max(1, _CHUNK_ELEMENTS // values.shape[1])
        for start in range(0, len(values), rows):
            result[start : start + rows] = change(
                values[start : start + rows].astype(np.float64)
            ).astype(values.dtype)
        return result

    def _load_stored(self, name: str) -> npt.NDArray[Any]:
        values = super().load_raw(self._stored_name(name))
        if name == _HEAD and self._tied and _HEAD in super().names():
            copy = super().load_raw(_HEAD)
            if copy.tobytes() != values.tobytes():
                raise FileFormatError(
                    self.path,
                    f"'{_HEAD}' differs from '{_EMBEDDING}', though config.json ties them; set "
                    "tie_word_embeddings to false to keep both",
                )
        return values

    def _stored_name(self, name: str) -> str:
        return _EMBEDDING if name == _HEAD and self._tied else name

    def _change(self, name: str) -> Callable[[Wide], Wide] | None:
        """What happens to a tensor, None for nothing."""
        rotation = self._residual
        if name == _EMBEDDING:
            return rotation.columns
        if name == _HEAD:
            gain = self._gain(_FINAL_NORM)
            return lambda values: rotation.columns(values * gain)
        if name == _FINAL_NORM:
            return self._unit
        match = _LAYER.fullmatch(name)
        return None if match is None else self._layer_change(*match.groups())

    def _layer_change(self, index: str, module: str, leaf: str) -> Callable[[Wide], Wide] | None:
        layout = self._layout
        if any(module == point.norm for point in layout.norms):
            return self._unit
        steps: list[Callable[[Wide], Wide]] = []
        norm = _norm_before(layout, module)
        if norm is not None and leaf == "weight":
            gain = self._gain(f"model.layers.{index}.{norm}.weight")
            steps.append(lambda values: self._residual.columns(values * gain))
        heads = random_rotation(self._head_dim, self._seed, 1 + int(index))
        if any(p.heads and p.producer == module for p in layout.linears):
            steps.append(lambda values: _by_head(values.T, heads).T)
        if leaf == "weight" and any(p.heads and p.reader == module for p in layout.linears):
            steps.append(lambda values: _by_head(values, heads))
        if _matches(layout.writers, module):
            steps.append(self._residual.rows)
        return _one_after_the_other(steps) if steps else None

    def _mixes_rows(self, name: str) -> bool:
        match = _LAYER.fullmatch(name)
        if match is None:
            return False
        module = match[2]
        values = any(p.heads and p.producer == module for p in self._layout.linears)
        return values or _matches(self._layout.writers, module)

    def _gain(self, norm: str) -> Wide:
        values = super().load_raw(norm).astype(np.float64)
        return values + 1.0 if self._layout.offset else values

    def _unit(self, values: Wide) -> Wide:
        return np.zeros_like(values) if self._layout.offset else np.ones_like(values)

    def _require_known(self, name: str) -> None:
        if self._change(name) is not None or name.endswith(_DERIVED):
            return
        match = _LAYER.fullmatch(name)
        module = None if match is None else match[2]
        if module is not None and (module in _UNTOUCHED or _is_bias_of_reader(self, name, module)):
            return
        raise UnsupportedModelError(
            f"{self.path}: cannot be rotated, since the part of tensor '{name}' in the residual "
            "stream is not known; leave 'rotation' out of the recipe"
        )


def _rotatable(source: Checkpoint) -> Layout:
    kind = str(source.config.get("model_type"))
    layout = layout_of(kind)
    if not layout.rotatable:
        raise UnsupportedModelError(
            f"{source.path}: a {kind} model cannot be rotated, since it norms what its layers add "
            "to the residual stream; leave 'rotation' out of the recipe"
        )
    for name in (_EMBEDDING, _FINAL_NORM):
        if name not in source.names():
            raise UnsupportedModelError(f"{source.path}: tensor '{name}' is missing")
    return layout


def _matches(patterns: Collection[str], module: str) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def _norm_before(layout: Layout, module: str) -> str | None:
    return next((p.norm for p in layout.norms if _matches(p.readers, module)), None)


def _is_bias_of_reader(checkpoint: RotatedCheckpoint, name: str, module: str) -> bool:
    return name.endswith(".bias") and _norm_before(checkpoint._layout, module) is not None


def _by_head(values: Wide, rotation: Rotation) -> Wide:
    """Each run of head_dim entries along the last axis, rotated."""
    return rotation.columns(values.reshape(-1, len(rotation.signs))).reshape(values.shape)


def _one_after_the_other(steps: list[Callable[[Wide], Wide]]) -> Callable[[Wide], Wide]:
    def change(values: Wide) -> Wide:
        for step in steps:
            values = step(values)
        return values

    return change
