"""From a config to a Program: the decoder that all families of the table share."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from compile.families.rope import reachable_positions, rope_spec, rope_specs_by_window
from compile.families.settings import Settings
from compile.families.table import FAMILIES, Family, Mixture
from compile.program import (
    Add,
    Attend,
    DecoderSizes,
    Embed,
    Expert,
    GatedAct,
    Linear,
    Logits,
    Moe,
    Op,
    Program,
    RmsNorm,
    Rope,
    RopeSpec,
    SelectRows,
    Slice,
    Value,
)
from quant.format.errors import InputError, UnsupportedModelError
from quant.format.experts import EXPERT_NAMES
from quant.format.scheme import Scheme

ACTIVATIONS: Mapping[str, Literal["silu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
MANTISSA_BITS = {"float32": 24, "float16": 11, "bfloat16": 8}
EMBEDDINGS = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def build_program(
    config: Mapping[str, Any], scheme_of: Callable[[str], Scheme], has: Callable[[str], bool]
) -> Program:
    """The Program of a Hugging Face config.

    scheme_of: how the named weight's numbers are stored. has: whether the source holds a name.
    A checkpoint that holds a head although its config ties it keeps its head, as in transformers.
    Raises UnsupportedModelError for a family, activation or rotary scaling that is not in the
    table, InputError for a config that contradicts itself.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type {name!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[name]
    settings = Settings(config, family.defaults)
    _refuse(name, settings, family.refused)
    sizes = settings.decoder_sizes()
    rope, local_rope = _ropes(settings, family, sizes)
    sizes = replace(sizes, max_positions=reachable_positions(settings, rope, sizes.max_positions))
    builder = _Builder(
        name=name,
        family=family,
        settings=settings,
        sizes=sizes,
        rope=rope,
        local_rope=local_rope,
        eps=settings.number("rms_norm_eps"),
        activation=_activation(settings, family.activation),
        scheme_of=scheme_of,
    )
    tied = settings.flag("tie_word_embeddings") and not has(HEAD)
    return Program(name, sizes, builder.decoder(EMBEDDINGS if tied else HEAD), tied)


def _activation(settings: Settings, key: str) -> Literal["silu", "gelu_tanh"]:
    name = settings.get(key)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"{key} {name!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def _refuse(name: str, settings: Settings, keys: Iterable[str]) -> None:
    for key in keys:
        if settings.get(key) not in (None, False):
            raise UnsupportedModelError(
                f"'{key}' of the model's config is {settings.get(key)!r}, which is not supported "
                f"in {name} models"
            )


def _ropes(settings: Settings, family: Family, sizes: DecoderSizes) -> tuple[RopeSpec, RopeSpec]:
    """(of layers that see everything, of layers with a window)."""
    given = (settings, sizes.head_dim, sizes.max_positions)
    if family.local_rope:
        return rope_specs_by_window(*given)
    return (rope_spec(*given, family.partial_rope),) * 2


def embedding_scale(settings: Settings) -> float:
    """The square root of the width, rounded to the type of the weights, as transformers does;
    `embedding_scale` says otherwise."""
    if settings.get("embedding_scale") is not None:
        return settings.number("embedding_scale")
    dtype = str(settings.get("dtype") or settings.get("torch_dtype") or "float32")
    bits = MANTISSA_BITS.get(dtype.removeprefix("torch."), MANTISSA_BITS["float32"])
    fraction, exponent = math.frexp(settings.size("hidden_size") ** 0.5)
    return math.ldexp(round(fraction * 2**bits), exponent - bits)


@dataclass
class _Builder:
    name: str
    family: Family
    settings: Settings
    sizes: DecoderSizes
    rope: RopeSpec
    local_rope: RopeSpec
    eps: float
    activation: Literal["silu", "gelu_tanh"]
    scheme_of: Callable[[str], Scheme]
    ops: list[Op] = field(default_factory=list)

    def decoder(self, head: str) -> tuple[Op, ...]:
        hidden, vocab = self.sizes.hidden_size, self.sizes.vocab_size
        scale = embedding_scale(self.settings) if self.family.scaled_embeddings else 1.0
        self.ops.append(Embed("embeddings", EMBEDDINGS, self.scheme_of(EMBEDDINGS), scale))
        x, layers, mixture = "embeddings", self.sizes.layers, self.family.mixture
        mixed = [False] * layers if mixture is None else mixture.layers(self.settings, layers)
        for layer, window in enumerate(self.family.windows(self.settings, layers)):
            x = self._layer(x, layer, window, mixture if mixed[layer] else None)
        normed = self._norm("normed", x, "model.norm", hidden)
        self.ops.append(SelectRows("selected", normed))
        scheme, softcap = self.scheme_of(head), self._softcap(self.family.softcaps[1])
        self.ops.append(Logits("logits", "selected", head, hidden, vocab, scheme, softcap))
        return tuple(self.ops)

    def _layer(self, x: Value, layer: int, window: int | None, mixture: Mixture | None) -> Value:
        prefix, hidden = f"layers.{layer}", self.sizes.hidden_size
        norm = self._norm(
            f"{prefix}.attention_in", x, f"model.layers.{layer}.input_layernorm", hidden
        )
        attention = self._attention(norm, prefix, layer, window)
        before, after = "post_attention_layernorm", "post_feedforward_layernorm"
        if self.family.sandwich:
            attention = self._norm(
                f"{prefix}.attention_out", attention, f"model.{prefix}.{before}", hidden
            )
            before = "pre_feedforward_layernorm"
        x = self._add(f"{prefix}.attention_sum", x, attention)
        norm = self._norm(f"{prefix}.mlp_in", x, f"model.{prefix}.{before}", hidden)
        mlp = self._mlp(norm, prefix) if mixture is None else self._moe(norm, prefix, mixture)
        if self.family.sandwich:
            mlp = self._norm(f"{prefix}.mlp_out", mlp, f"model.{prefix}.{after}", hidden)
        return self._add(f"{prefix}.mlp_sum", x, mlp)

    def _attention(self, x: Value, prefix: str, layer: int, window: int | None) -> Value:
        sizes, module = self.sizes, f"model.{prefix}.self_attn"
        queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        hidden, bias = sizes.hidden_size, self._wants(self.family.qkv_bias)
        widths = {"q": queries, "k": keys, "v": keys}
        q, k, v = self._parallel(x, prefix, module, "qkv_proj", widths, bias)
        if self.family.query_key_norm:
            q = self._norm(f"{prefix}.q_normed", q, f"{module}.q_norm", sizes.head_dim)
            k = self._norm(f"{prefix}.k_normed", k, f"{module}.k_norm", sizes.head_dim)
        rope = self.rope if window is None else self.local_rope
        q = self._rotate(f"{prefix}.q_rotated", q, sizes.heads, rope)
        k = self._rotate(f"{prefix}.k_rotated", k, sizes.kv_heads, rope)
        key, attended = self.family.query_scalar, f"{prefix}.attended"
        scale = (sizes.head_dim if key is None else self.settings.number(key)) ** -0.5
        shape = (sizes.heads, sizes.kv_heads, sizes.head_dim)
        softcap = self._softcap(self.family.softcaps[0])
        self.ops.append(Attend(attended, q, k, v, layer, *shape, scale, window, softcap))
        bias = self._wants(self.family.output_bias)
        return self._linear(f"{prefix}.o", attended, f"{module}.o_proj", queries, hidden, bias)

    def _mlp(self, x: Value, prefix: str) -> Value:
        hidden, inner = self.sizes.hidden_size, self.sizes.intermediate_size
        module, bias = f"model.{prefix}.mlp", self._wants(self.family.mlp_bias)
        widths = {"gate": inner, "up": inner}
        gate, up = self._parallel(x, prefix, module, "gate_up_proj", widths, bias)
        gated = f"{prefix}.gated"
        self.ops.append(GatedAct(gated, gate, up, self.activation))
        return self._linear(f"{prefix}.down", gated, f"{module}.down_proj", inner, hidden, bias)

    def _moe(self, x: Value, prefix: str, mixture: Mixture) -> Value:
        hidden, names = self.sizes.hidden_size, EXPERT_NAMES[self.name]
        inner, keys = self.settings.size(mixture.inner), mixture.count
        key = next((key for key in keys if key in self.settings.values), keys[-1])
        count = self.settings.size(key)
        chosen = self.settings.size("num_experts_per_tok")
        if chosen > count:
            raise InputError(
                f"'num_experts_per_tok' of the model's config is {chosen}, more than "
                f"'{key}', {count}"
            )
        block = f"model.{prefix}.{names.block}"
        logits = self._linear(f"{prefix}.router", x, f"{block}.gate", hidden, count, False)
        experts = []
        for number in range(count):
            value, module = f"{prefix}.expert{number}", f"{block}.experts.{number}"
            gate = self._matrix(f"{value}.gate", x, f"{module}.{names.gate}", hidden, inner)
            up = self._matrix(f"{value}.up", x, f"{module}.{names.up}", hidden, inner)
            down = self._matrix(
                f"{value}.down", f"{value}.gated", f"{module}.{names.down}", inner, hidden
            )
            experts.append(Expert(gate, up, down))
        mixed, normalized = f"{prefix}.mixed", self._wants(mixture.normalized)
        self.ops.append(Moe(mixed, x, logits, tuple(experts), chosen, normalized, self.activation))
        return mixed

    def _parallel(
        self, x: Value, prefix: str, module: str, fused: str, widths: Mapping[str, int], bias: bool
    ) -> list[Value]:
        """Products of x with several matrices, which a family may store as one, row below row."""
        hidden = self.sizes.hidden_size
        if not self.family.fused:
            return [
                self._linear(f"{prefix}.{name}", x, f"{module}.{name}_proj", hidden, rows, bias)
                for name, rows in widths.items()
            ]
        whole, start = f"{prefix}.{fused.removesuffix('_proj')}", 0
        self._linear(whole, x, f"{module}.{fused}", hidden, sum(widths.values()), bias)
        for name, rows in widths.items():
            self.ops.append(Slice(f"{prefix}.{name}", whole, start, rows))
            start += rows
        return [f"{prefix}.{name}" for name in widths]

    def _softcap(self, key: str | None) -> float | None:
        return None if key is None or self.settings.get(key) is None else self.settings.number(key)

    def _wants(self, choice: bool | str) -> bool:
        return self.settings.flag(choice) if isinstance(choice, str) else choice

    def _linear(
        self, out: Value, x: Value, module: str, columns: int, rows: int, bias: bool
    ) -> Value:
        self.ops.append(self._matrix(out, x, module, columns, rows, bias))
        return out

    def _matrix(
        self, out: Value, x: Value, module: str, columns: int, rows: int, bias: bool = False
    ) -> Linear:
        weight, bias_name = f"{module}.weight", f"{module}.bias" if bias else None
        return Linear(out, x, weight, bias_name, columns, rows, self.scheme_of(weight))

    def _norm(self, out: Value, x: Value, module: str, size: int) -> Value:
        self.ops.append(
            RmsNorm(out, x, f"{module}.weight", size, self.eps, self.family.norm_offset)
        )
        return out

    def _rotate(self, out: Value, x: Value, heads: int, rope: RopeSpec) -> Value:
        self.ops.append(Rope(out, x, heads, self.sizes.head_dim, rope))
        return out

    def _add(self, out: Value, a: Value, b: Value) -> Value:
        self.ops.append(Add(out, a, b))
        return out
