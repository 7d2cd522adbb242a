"""Reading a model's config: every value checked, every complaint names its key."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compile.program import DecoderSizes
from quant.format.errors import InputError

MAX_SIZE = 1 << 31
MAX_LAYERS = 1 << 12
SMALLEST, LARGEST = 1e-30, 1e30


@dataclass(frozen=True)
class Settings:
    """A config.json with the family's defaults beneath it; an explicit null hides the default."""

    values: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def get(self, key: str) -> Any:
        value = self.values.get(key)
        if value is None and key not in self.values:
            value = self.defaults.get(key)
        return value

    def size(self, key: str, most: int = MAX_SIZE) -> int:
        """A whole number from 1 to `most`."""
        value = self.get(key)
        if value is None:
            raise InputError(f"the model's config has no '{key}'; add it to config.json")
        return whole_number(key, value, most)

    def size_or(self, key: str, otherwise: int) -> int:
        value = self.get(key)
        return otherwise if value is None else whole_number(key, value, MAX_SIZE)

    def number(self, key: str) -> float:
        """A number above 0."""
        return positive_number(key, self.get(key))

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise InputError(f"'{key}' of the model's config must be true or false, not {value!r}")
        return value

    def decoder_sizes(self) -> DecoderSizes:
        """Raises InputError when a size is missing or absurd, or when heads do not divide."""
        hidden, heads = self.size("hidden_size"), self.size("num_attention_heads")
        kv_heads = self.size_or("num_key_value_heads", heads)
        if heads % kv_heads:
            raise InputError(
                f"'num_attention_heads' of the model's config is {heads}, which is not a multiple "
                f"of 'num_key_value_heads', {kv_heads}"
            )
        if self.get("head_dim") is None and hidden % heads:
            raise InputError(
                f"'hidden_size' of the model's config is {hidden}, which is not a multiple of "
                f"'num_attention_heads', {heads}; give 'head_dim' explicitly"
            )
        head_dim = self.size_or("head_dim", hidden // heads)
        if head_dim % 2:
            raise InputError(
                f"'head_dim' of the model's config is {head_dim}; rotary needs it even"
            )
        return DecoderSizes(
            layers=self.size("num_hidden_layers", MAX_LAYERS),
            hidden_size=hidden,
            intermediate_size=self.size("intermediate_size"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=self.size("vocab_size"),
            max_positions=self.size("max_position_embeddings"),
        )


def whole_number(key: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InputError(
            f"'{key}' of the model's config must be a whole number from 1 to {most}, not {value!r}"
        )
    return value


def positive_number(key: str, value: Any) -> float:
    """Between limits that keep every later product and quotient finite."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not SMALLEST <= value <= LARGEST:
        raise InputError(
            f"'{key}' of the model's config must be a number from {SMALLEST} to {LARGEST}, "
            f"not {value!r}"
        )
    return float(value)
