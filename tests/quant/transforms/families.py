"""Tiny random models of every family whose fold points are known, made by transformers."""

from typing import Any

import torch

from quant.experts import find_experts, split_experts
from quant.format.experts import EXPERT_NAMES
from quant.skeleton import set_parameter

COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "num_experts": 4,
    "moe_intermediate_size": 16,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"num_key_value_heads": 1},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True},
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {"tie_word_embeddings": True},
    "gemma3_text": {"tie_word_embeddings": True},
    "phi3": {},
    "mixtral": EXPERTS,
    "qwen3_moe": EXPERTS,
}


def random_model(family: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A causal LM of `family` whose every parameter, norms and biases too, is random.

    Channels differ in size, so that transforms have something to do. The global random state stays
    as it was.
    """
    import transformers

    config = transformers.AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family], **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, experts_implementation="eager"
        )
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                centre = 1.0 if name.endswith("norm.weight") else 0.0
                centre = 0.0 if family.startswith("gemma") else centre
                parameter.data = centre + 0.3 * torch.randn_like(parameter)
            else:
                parameter.data = torch.randn_like(parameter) / parameter.shape[-1] ** 0.5
                parameter.data *= torch.exp(0.5 * torch.randn(parameter.shape[-1]))
    return model.to(dtype).eval().requires_grad_(False)


def random_tokens(samples: int = 3, length: int = 12) -> torch.Tensor:
    return torch.randint(1, 64, (samples, length), generator=torch.Generator().manual_seed(1))


def split_model(family: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """`random_model` with each expert's matrices in linears of their own, as the layer loop has
    them."""
    model = random_model(family, dtype, **options)
    stacked: list[Any] = [getattr(layer.mlp, "experts", None) for layer in model.model.layers]
    split_experts(model, model.model.layers)
    for layer, old in zip(model.model.layers, stacked, strict=True):
        for experts in find_experts(layer).values():
            for number, (gate_up, down) in enumerate(
                zip(old.gate_up_proj, old.down_proj, strict=True)
            ):
                names, (gate, up) = EXPERT_NAMES[family], gate_up.chunk(2)
                for name, value in ((names.gate, gate), (names.up, up), (names.down, down)):
                    set_parameter(experts, f"{number}.{name}.weight", value.clone())
    return model
