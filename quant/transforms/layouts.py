"""Where scales can move inside a decoder layer, by model family: names, and nothing else.

Names alone would not do: some families give a norm of the same name another place (OLMo 2 norms
what attention returns, under the name that llama gives to the MLP's input norm).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from quant.format.errors import UnsupportedModelError
from quant.format.experts import EXPERT_NAMES, ExpertNames


@dataclass(frozen=True)
class NormPoint:
    """`norm` feeds `readers` and nothing else; all are inside `parent`. `*` stands for experts.

    Names are those of modules inside the decoder layer.
    """

    norm: str
    readers: tuple[str, ...]
    parent: str


@dataclass(frozen=True)
class LinearPoint:
    """Output rows of `producer` reach columns of `reader` linearly, each times what other tensors
    say. heads: by way of attention, where each head of `producer` may serve several of `reader`.
    """

    producer: str
    reader: str
    heads: bool = False


@dataclass(frozen=True)
class Layout:
    """norms, linears: fold points. writers: linears whose outputs are added to the residual.

    offset: norms are stored as offset from one. rotatable: nothing stands between the writers and
    the residual, so that it may be rotated.
    """

    norms: tuple[NormPoint, ...]
    linears: tuple[LinearPoint, ...]
    writers: tuple[str, ...] = ("self_attn.o_proj", "mlp.down_proj")
    offset: bool = False
    rotatable: bool = True


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
_ATTENTION = NormPoint("input_layernorm", _QKV, "self_attn")
_VALUES = LinearPoint("self_attn.v_proj", "self_attn.o_proj", heads=True)
_UP = LinearPoint("mlp.up_proj", "mlp.down_proj")
_LINEARS = (_VALUES, _UP)
_DENSE = (_ATTENTION, NormPoint("post_attention_layernorm", _GATE_UP, "mlp"))
_SANDWICHED = (_ATTENTION, NormPoint("pre_feedforward_layernorm", _GATE_UP, "mlp"))

# The rows of values and of the MLP's upper half share a matrix with others, so that no scale can
# move from them to their readers alone.
_FUSED = (
    NormPoint("input_layernorm", ("self_attn.qkv_proj",), "self_attn"),
    NormPoint("post_attention_layernorm", ("mlp.gate_up_proj",), "mlp"),
)

_PLAIN = Layout(_DENSE, _LINEARS)
_SANDWICH = Layout(_SANDWICHED, _LINEARS, offset=True, rotatable=False)


def _mixture(names: ExpertNames) -> Layout:
    """Experts, named as the family's files name them, or in some layers a plain MLP. All experts
    share one scale of their input, and the router takes part in it."""
    block, expert = names.block, f"{names.block}.experts.*"
    readers = (f"{block}.gate", f"{expert}.{names.gate}", f"{expert}.{names.up}")
    inner = LinearPoint(f"{expert}.{names.up}", f"{expert}.{names.down}")
    return Layout(
        (*_DENSE, NormPoint("post_attention_layernorm", readers, block)),
        (*_LINEARS, inner),
        writers=("self_attn.o_proj", "mlp.down_proj", inner.reader),
    )


_LAYOUTS: Mapping[str, Layout] = {
    "llama": _PLAIN,
    "mistral": _PLAIN,
    "qwen2": _PLAIN,
    "qwen3": _PLAIN,
    "gemma": Layout(_DENSE, _LINEARS, offset=True),
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "phi3": Layout(_FUSED, ()),
    "mixtral": _mixture(EXPERT_NAMES["mixtral"]),
    "qwen3_moe": _mixture(EXPERT_NAMES["qwen3_moe"]),
}


def residual_norms(model_type: str) -> Mapping[str, str]:
    """By linear whose output is added to the residual stream: the norm that reads the stream which
    it is added to. Names are those inside the layer; empty for families that are not known, or
    where something stands between the linear and the stream."""
    layout = _LAYOUTS.get(model_type)
    if layout is None or not layout.rotatable:
        return {}
    by_parent = {point.parent: point.norm for point in layout.norms}
    parents = {writer: writer.rpartition(".")[0] for writer in layout.writers}
    return {writer: by_parent[p] for writer, p in parents.items() if p in by_parent}


def is_known(model_type: str) -> bool:
    """Whether `layout_of` has a layout for the family."""
    return model_type in _LAYOUTS


def layout_of(model_type: str) -> Layout:
    """The layout of a family's decoder layers. Raises UnsupportedModelError for an unknown one."""
    if model_type not in _LAYOUTS:
        raise UnsupportedModelError(
            f"config.json: model_type {model_type!r} has no known places where scales can be "
            f"folded; awq, smoothquant and rotation know {', '.join(_LAYOUTS)}"
        )
    return _LAYOUTS[model_type]


def expand(patterns: Collection[str], names: Collection[str]) -> tuple[str, ...] | None:
    """The names that match each pattern, in the order of patterns; None where one matches none."""
    found: list[str] = []
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            return None
        found += matching
    return tuple(found)
