"""Tiny random checkpoints in Hugging Face form, with a real byte-level tokenizer.

Nothing here needs torch or transformers, and no global random state is touched.
"""

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from compile.families import build_program
from compile.model import Model
from quant.format.compressed_tensors import encode_weight, quantization_config
from quant.format.rounding import absmax_scale, minmax_scale, quantize_codes, zero_point_for
from quant.format.scheme import FloatScheme, IntScheme, Scheme
from quant.format.tensor import QuantizedTensor, Weight

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
GEMMAS = ("gemma2", "gemma3_text")
EXPERTS = 4
_GATED = ("gate_proj", "up_proj", "down_proj")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
"""Stretched rotations that begin within the few positions that tests look at."""
LONGROPE: Mapping[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    "long_factor": [1.0, 2.0, 3.0, 5.0, 8.0, 13.0],
    "partial_rotary_factor": 0.75,
}
"""For heads of 16 elements, 12 of which are rotated."""
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = """
The press stands in the corner of the workshop, where the light of the morning falls on it. A worker
lays the fruit between two plates and turns the screw; slowly the plates come together, and the oil
runs down into a jar. Nothing is heated, so nothing is lost. In the evening the jars are counted and
sealed, and each of them carries the name of the farm, the day and the weight: 12 jars on the 3rd,
47 on the 18th, 105 before the end of the month. "How do you know that it is good?" asked a child.
"We taste it," said the worker, "and we compare it with the oil of last year." The child thought
about the question for a while. Then she wrote a list: one, two, three, four, five; red, green and
blue; the man, the woman, the house, the river. Once upon a time there was a small machine that
could read and answer. It was asked what the capital of the country was, and what two and two make.
def press(fruit, force): return [oil(part) for part in fruit if force > 0]
Café, naïve, größer, 日本語, Привет, 🙂: words of other people are words as well.
"""


@cache
def tokenizer_json(vocab: int = 384) -> str:
    """A byte-level BPE tokenizer of at most `vocab` tokens, trained on TEXT."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return str(tokenizer.to_str())


def tiny_config(
    family: str = "llama",
    *,
    tied: bool = False,
    bias: bool | None = None,
    kv_heads: int = 2,
    heads: int = 4,
    rope_scaling: Mapping[str, Any] | None = None,
    rope_theta: float = 10_000.0,
    dtype: str = "bfloat16",
    hidden_size: int = 64,
    layers: int = 2,
    intermediate: int = 128,
    vocab: int = 384,
    head_dim: int | None = None,
    max_positions: int = 256,
    **overrides: Any,
) -> dict[str, Any]:
    """A config.json of one family; `bias` is for llama (all linears) and qwen3 (attention)."""
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim or hidden_size // heads,
        "vocab_size": vocab,
        "max_position_embeddings": max_positions,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta}
        | dict(rope_scaling or {}),
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "dtype": dtype,
    }
    if family == "mixtral":
        config |= {"num_local_experts": EXPERTS, "num_experts_per_tok": 2}
    if family in ("qwen2_moe", "qwen3_moe"):
        config |= {"num_experts": EXPERTS, "num_experts_per_tok": 2, "norm_topk_prob": True}
        config |= {"moe_intermediate_size": 64, "decoder_sparse_step": 1, "mlp_only_layers": []}
    if family == "qwen2_moe":
        config |= {"shared_expert_intermediate_size": 96, "qkv_bias": True}
    if family in ("llama", "qwen3", "qwen3_moe", *GEMMAS):
        config["attention_bias"] = bool(bias)
    elif bias is not None and bias != family.startswith("qwen2"):
        raise ValueError(f"{family} has no choice about its biases")
    if family == "llama":
        config["mlp_bias"] = bool(bias)
    if family in ("mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe", "phi3"):
        config["sliding_window"] = None
    if family in GEMMAS:
        config |= _gemma_keys(config)
    if family == "phi3":
        config["original_max_position_embeddings"] = 64
        del config["head_dim"]  # transformers would take the longrope of another head
        if head_dim not in (None, hidden_size // heads):
            raise ValueError("phi3 has no heads of another size")
    return config | overrides


def _gemma_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Limits low enough to matter, a window that short prompts leave, scales of their own."""
    keys: dict[str, Any] = {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": config["head_dim"],
        "sliding_window": 7,
    }
    del config["hidden_act"]
    if config["model_type"] == "gemma2":
        return keys | {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}
    local = {"rope_type": "default", "rope_theta": 100.0}
    config["rope_parameters"] = {
        "full_attention": config["rope_parameters"],
        "sliding_attention": local,
    }
    return keys | {"sliding_window_pattern": 2, "layer_types": None}


def tiny_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint, in file order."""
    hidden = config["hidden_size"]
    head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
    q_width = config["num_attention_heads"] * head_dim
    kv_width = config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden)
    }

    def linear(name: str, rows: int, columns: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)

    family, all_bias = config["model_type"], bool(config.get("attention_bias"))
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        parts = {"q_proj": q_width, "k_proj": kv_width, "v_proj": kv_width}
        if family == "phi3":
            parts = {"qkv_proj": sum(parts.values())}
        for name, width in parts.items():
            linear(f"{attention}.{name}", width, hidden, all_bias or family.startswith("qwen2"))
        linear(f"{attention}.o_proj", hidden, q_width, all_bias)
        if family in ("qwen3", "qwen3_moe", "gemma3_text"):
            shapes[f"{attention}.q_norm.weight"] = shapes[f"{attention}.k_norm.weight"] = (
                head_dim,
            )
        mlp_bias = bool(config.get("mlp_bias"))
        for name, rows, columns in _mlp_linears(config, mlp, layer):
            linear(name, rows, columns, mlp_bias)
        norms = ["input_layernorm", "post_attention_layernorm"]
        if family in GEMMAS:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        shapes |= {f"{prefix}.{norm}.weight": (hidden,) for norm in norms}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def _mlp_linears(config: Mapping[str, Any], mlp: str, layer: int) -> list[tuple[str, int, int]]:
    """(name, rows, columns) of everything behind the second norm, routers included."""
    hidden, family = config["hidden_size"], config["model_type"]

    def gated(prefix: str, inner: int, names: tuple[str, str, str]) -> list[tuple[str, int, int]]:
        gate, up, down = (f"{prefix}.{name}" for name in names)
        return [(gate, inner, hidden), (up, inner, hidden), (down, hidden, inner)]

    if family == "phi3":
        inner = config["intermediate_size"]
        return [(f"{mlp}.gate_up_proj", 2 * inner, hidden), (f"{mlp}.down_proj", hidden, inner)]
    dense = layer in config.get("mlp_only_layers", ())
    if dense or family not in ("mixtral", "qwen2_moe", "qwen3_moe"):
        return gated(mlp, config["intermediate_size"], _GATED)
    inner = config.get("moe_intermediate_size", config["intermediate_size"])
    block, names = mlp, _GATED
    if family == "mixtral":
        block, names = mlp.replace(".mlp", ".block_sparse_moe"), ("w1", "w3", "w2")
    linears = [(f"{block}.gate", EXPERTS, hidden)]
    for number in range(EXPERTS):
        linears += gated(f"{block}.experts.{number}", inner, names)
    if family == "qwen2_moe":
        shared = config["shared_expert_intermediate_size"]
        linears += gated(f"{block}.shared_expert", shared, _GATED)
        linears.append((f"{block}.shared_expert_gate", 1, hidden))
    return linears


def tiny_tensors(config: Mapping[str, Any], seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Random weights that keep activations near 1 and logits near a standard deviation of 1."""
    random = np.random.default_rng(seed)
    dtype = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
    tensors = {}
    for name, shape in tiny_shapes(config).items():
        values = random.standard_normal(shape, dtype=np.float32)
        if len(shape) == 2:
            values /= np.sqrt(np.float32(shape[1]))
        else:
            from_one = name.endswith("norm.weight") and config["model_type"] not in GEMMAS
            values = values * np.float32(0.1) + np.float32(from_one)
        tensors[name] = values.astype(dtype[config["dtype"]])
    return tensors


def round_to_nearest(values: npt.NDArray[Any], scheme: IntScheme) -> QuantizedTensor:
    """A matrix in `scheme`, its scales in the dtype of `values`; groups must divide the columns."""
    rows, columns = values.shape
    grouped = values.astype(np.float32).reshape(rows, scheme.groups(columns), -1)
    low, high = grouped.min(2), grouped.max(2)
    if scheme.symmetric:
        scale = absmax_scale(np.abs(grouped).max(2), scheme.num_bits).astype(values.dtype)
        zero_point = None
    else:
        scale = minmax_scale(low, high, scheme.num_bits).astype(values.dtype)
        zero_point = zero_point_for(low, scale.astype(np.float32), scheme.num_bits)
    codes = quantize_codes(
        grouped,
        scale.astype(np.float32)[..., None],
        None if zero_point is None else zero_point[..., None],
        scheme.qmin,
        scheme.qmax,
    )
    stored_zero = None if zero_point is None else zero_point.astype(np.int8)
    return QuantizedTensor(scheme, codes.astype(np.int8).reshape(rows, -1), scale, stored_zero)


def tiny_weights(
    config: Mapping[str, Any], seed: int = 0, scheme: IntScheme | None = None
) -> dict[str, Weight]:
    """`tiny_tensors`, with every linear layer but the head in `scheme` if one is given."""
    return {
        name: round_to_nearest(values, scheme) if scheme and "_proj.weight" in name else values
        for name, values in tiny_tensors(config, seed).items()
    }


@dataclass(frozen=True)
class TinySource:
    """A WeightSource over weights in memory."""

    weights: Mapping[str, Weight]

    def names(self) -> Collection[str]:
        return self.weights.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.weights[name].shape

    def scheme(self, name: str) -> Scheme:
        weight = self.weights[name]
        if isinstance(weight, QuantizedTensor):
            return weight.scheme
        return FloatScheme(weight.dtype.name)  # type: ignore[arg-type]

    def load(self, name: str) -> Weight:
        return self.weights[name]


def tiny_model(
    family: str = "llama",
    *,
    seed: int = 0,
    scheme: IntScheme | None = None,
    weights: Mapping[str, Weight] | None = None,
    **options: Any,
) -> Model:
    """A Model in memory, the one of `tiny_checkpoint`; `weights` replaces some by name."""
    config = tiny_config(family, **options)
    source = TinySource({**tiny_weights(config, seed, scheme), **(weights or {})})
    program = build_program(config, source.scheme, lambda name: name in source.names())
    return Model(Path("memory"), "huggingface", program, source, config, None, None)


def write_tokenizer(directory: Path, vocab: int = 384) -> None:
    """tokenizer.json, tokenizer_config.json and generation_config.json."""
    (directory / "tokenizer.json").write_text(tokenizer_json(vocab), encoding="utf-8")
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    write_json(
        directory / "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    )


def tiny_checkpoint(
    directory: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    scheme: IntScheme | None = None,
    **options: Any,
) -> Path:
    """Write a checkpoint into `directory` (made if missing); `options` go to `tiny_config`.

    With `scheme`, every linear layer but the head is stored in it, in compressed-tensors form.
    """
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    config = tiny_config(family, **options)
    stored: dict[str, npt.NDArray[Any]] = {}
    for name, weight in tiny_weights(config, seed, scheme).items():
        if isinstance(weight, QuantizedTensor):
            stored |= encode_weight(name.removesuffix(".weight"), weight)
        else:
            stored[name] = weight
    if scheme is not None:
        linears = [name for name in tiny_shapes(config) if name.endswith("_proj.weight")]
        config["quantization_config"] = quantization_config(
            {name.removesuffix(".weight"): scheme for name in linears}
        )
    write_json(directory / "config.json", config)
    save_file(stored, directory / "model.safetensors", {"format": "pt"})
    write_tokenizer(directory, config["vocab_size"])
    return directory


def stack_experts(checkpoint: Path, directory: Path) -> Path:
    """A copy of a mixtral or qwen3_moe checkpoint with its experts in 3-D tensors, named as the
    modules of transformers are."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(checkpoint, directory)
    tensors = load_file(directory / "model.safetensors")
    stored = {name: value for name, value in tensors.items() if ".experts." not in name}
    for block, leaves in (("block_sparse_moe", ("w1", "w3", "w2")), ("mlp", _GATED)):
        routers = [name for name in stored if name.endswith(f".{block}.gate.weight")]
        for router in routers:
            prefix = router.removesuffix(".gate.weight")
            gate, up, down = (
                [tensors[f"{prefix}.experts.{e}.{leaf}.weight"] for e in range(EXPERTS)]
                for leaf in leaves
            )
            theirs = prefix.replace("block_sparse_moe", "mlp")
            stored[f"{theirs}.gate.weight"] = stored.pop(router)
            stored[f"{theirs}.experts.down_proj"] = np.stack(down)
            stored[f"{theirs}.experts.gate_up_proj"] = np.stack(
                [np.concatenate(pair) for pair in zip(gate, up, strict=True)]
            )
        if routers:
            break
    save_file(stored, directory / "model.safetensors", {"format": "pt"})
    return directory


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
