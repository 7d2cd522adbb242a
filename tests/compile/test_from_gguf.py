"""GGUF files of others, opened as Hugging Face names, values and config."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from compile.compare import compare_weights
from compile.families import build_program, check_weights
from compile.from_gguf import open_gguf
from compile.open_model import open_model
from compile.program import Rope
from compile.same_program import multiplied_weight, program_differences
from compile.to_gguf import build_gguf
from quant.format.errors import FileFormatError, UnsupportedModelError
from quant.format.scheme import FloatScheme, IntScheme, PerGroup
from quant.format.tensor import QuantizedTensor
from tests.tiny import LONGROPE, tiny_checkpoint, tiny_config, tiny_tensors

gguf = pytest.importorskip("gguf")

KEYS: dict[str, Any] = {
    "block_count": 1,
    "context_length": 128,
    "embedding_length": 256,
    "feed_forward_length": 256,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
SHAPES = {
    "token_embd.weight": (64, 256),
    "blk.0.attn_norm.weight": (256,),
    "blk.0.attn_q.weight": (256, 256),
    "blk.0.attn_k.weight": (128, 256),
    "blk.0.attn_v.weight": (128, 256),
    "blk.0.attn_output.weight": (256, 256),
    "blk.0.ffn_norm.weight": (256,),
    "blk.0.ffn_gate.weight": (256, 256),
    "blk.0.ffn_up.weight": (256, 256),
    "blk.0.ffn_down.weight": (256, 256),
    "output_norm.weight": (256,),
}


def write(
    path: Path,
    arch: str = "llama",
    keys: dict[str, Any] | None = None,
    types: dict[str, str] | None = None,
    extra: dict[str, npt.NDArray[Any]] | None = None,
) -> Path:
    """A one-layer model by gguf's own writer. A key of None is left out; `types` by tensor name
    holds random bytes of that type."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, arch)
    for key, value in (KEYS | (keys or {})).items():
        name = key if key.startswith(("general.", "split.", "tokenizer.")) else f"{arch}.{key}"
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    for name, shape in SHAPES.items():
        if name in (types or {}):
            kind = gguf.GGMLQuantizationType[(types or {})[name]]
            data = random.integers(0, 100, gguf.quant_shape_to_byte_shape(shape, kind))
            writer.add_tensor(name, data.astype(np.uint8), raw_dtype=kind)
        else:
            writer.add_tensor(name, random.standard_normal(shape).astype(np.float32))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"]
)
@pytest.mark.parametrize("tied", [False, True])
def test_a_built_file_opens_as_the_checkpoint_that_it_was(
    family: str, tied: bool, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"tied": tied or family == "gemma2"}
    options |= {} if family == "phi3" else {"head_dim": 32}
    directory = tiny_checkpoint(tmp_path / "model", family, **options)
    build_gguf(directory, tmp_path / "model.gguf")
    config, weights, metadata, notes = open_gguf(tmp_path / "model.gguf")
    original = tiny_config(family, **options)
    for key in config.keys() & original.keys() - {"model_type", "layer_types"}:
        stored = original[key]
        assert config[key] == (float(np.float32(stored)) if key == "rms_norm_eps" else stored), key
    assert config["model_type"] == {"mistral": "llama"}.get(family, family)
    architecture = config["model_type"].removesuffix("_text")
    assert metadata["general.architecture"] == architecture and notes == []
    tensors = tiny_tensors(original)
    assert set(weights.names()) == set(tensors)
    for name, values in tensors.items():
        assert weights.shape(name) == values.shape
        loaded = weights.load(name)
        assert not isinstance(loaded, QuantizedTensor)
        assert np.array_equal(loaded, values.astype(np.float32)), name
    program = build_program(config, weights.scheme, set(weights.names()).__contains__)
    check_weights(program, weights)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5, "beta_fast": 16.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda scaling: str(scaling["rope_type"]),
)
def test_rotary_scaling_survives_the_trip(scaling: dict[str, Any], tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path / "model", rope_scaling=scaling)
    build_gguf(directory, tmp_path / "model.gguf")
    original = rope_of(tiny_config(rope_scaling=scaling))
    found = rope_of(open_gguf(tmp_path / "model.gguf")[0])
    assert found.theta == original.theta
    assert found.factors == pytest.approx(original.factors, rel=1e-6)
    assert found.attention_factor == pytest.approx(original.attention_factor, rel=1e-6)


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {}),
    "qwen3_moe": ("qwen3_moe", {"head_dim": 32}),
    "gemma2": ("gemma2", {"layers": 5, "hidden_size": 96, "head_dim": 32}),
    "gemma2-without-windows": ("gemma2", {"layer_types": ["full_attention"] * 2}),
    "gemma3": ("gemma3_text", {"layers": 7, "sliding_window_pattern": 6, "tied": False}),
    "gemma3-own-pattern": ("gemma3_text", {"layers": 5, "final_logit_softcapping": 3.0}),
    "gemma3-windows-alone": ("gemma3_text", {"layer_types": ["sliding_attention"] * 2}),
    "gemma3-linear": ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "phi3-window": ("phi3", {"sliding_window": 300}),
    "phi3-longrope": ("phi3", {"rope_scaling": LONGROPE}),
    "phi3-partial": ("phi3", {"rope_scaling": {"partial_rotary_factor": 0.4}}),
}


@pytest.mark.parametrize("case", FAMILIES)
def test_families_compute_the_same_after_the_trip(case: str, tmp_path: Path) -> None:
    """gemma2 of 96 columns: bfloat16 rounds the root of its width, which llama.cpp does not."""
    family, options = FAMILIES[case]
    options = {"tied": True, **options}
    directory = tiny_checkpoint(tmp_path / "model", family, **options)
    built = build_gguf(directory, tmp_path / "model.gguf")
    before, after = open_model(directory), open_model(tmp_path / "model.gguf")
    assert program_differences(before.program, after.program) == []
    assert any("multiplies embeddings by 9.79796" in n for n in built.notes) == (case == "gemma2")
    for name in before.program.weights():
        ours, theirs = multiplied_weight(after, name), multiplied_weight(before, name)
        assert compare_weights(name, theirs, ours).state == "equal", name


def test_tiny_offsets_from_one_count_as_the_numbers_that_norms_multiply_by(tmp_path: Path) -> None:
    """1 + 2**-30 is 1 in float32: the file cannot bring the offset back, and need not."""
    directory = tiny_checkpoint(tmp_path / "model", "gemma2", tied=True)
    tensors = load_file(directory / "model.safetensors")
    name = "model.norm.weight"
    tensors[name] = np.full_like(tensors[name], 2.0**-30)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    build_gguf(directory, tmp_path / "model.gguf")
    before, after = open_model(directory), open_model(tmp_path / "model.gguf")
    assert not np.asarray(after.weights.load(name)).any()
    pair = multiplied_weight(before, name), multiplied_weight(after, name)
    assert compare_weights(name, *pair).state == "equal"


def rope_of(config: dict[str, Any]) -> Any:
    program = build_program(config, lambda name: FloatScheme("float32"), lambda name: True)
    return next(op.rope for op in program.ops if isinstance(op, Rope))


def test_integer_blocks_keep_their_codes(tmp_path: Path) -> None:
    types = {
        "blk.0.attn_q.weight": "Q4_0",
        "blk.0.attn_v.weight": "Q4_1",
        "blk.0.ffn_up.weight": "Q5_1",
        "token_embd.weight": "Q8_0",
    }
    path = write(tmp_path / "m.gguf", types=types)
    _, weights, _, notes = open_gguf(path)
    assert notes == []
    values = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }
    query = weights.load("model.layers.0.self_attn.q_proj.weight")
    assert isinstance(query, QuantizedTensor) and str(query.scheme) == "Q4_0"
    order = [
        head * 64 + element for head in range(4) for element in [*range(0, 64, 2), *range(1, 64, 2)]
    ]
    assert np.array_equal(query.dequantize(), values["blk.0.attn_q.weight"][order], equal_nan=True)
    value = weights.load("model.layers.0.self_attn.v_proj.weight")
    assert isinstance(value, QuantizedTensor) and value.minimum is not None
    table = weights.scheme("model.embed_tokens.weight")
    assert table == IntScheme(8, True, PerGroup(32), ggml_type="Q8_0")


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_nested_scales_and_codebooks_keep_their_codes(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", types={"blk.0.ffn_up.weight": kind})
    _, weights, _, notes = open_gguf(path)
    assert notes == []
    name = "model.layers.0.mlp.up_proj.weight"
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.ffn_up.weight")
    loaded = weights.load(name)
    assert isinstance(loaded, QuantizedTensor) and str(weights.scheme(name)) == kind
    expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    assert np.array_equal(loaded.dequantize(), expected, equal_nan=True)


@pytest.mark.parametrize("kind", ["IQ2_XS", "IQ3_S", "TQ1_0"])
def test_other_types_become_floats_with_a_note(kind: str, tmp_path: Path) -> None:
    types = {"blk.0.ffn_up.weight": kind, "blk.0.attn_k.weight": kind}
    path = write(tmp_path / "m.gguf", types=types)
    _, weights, _, notes = open_gguf(path)
    assert notes == [f"2 tensors of type {kind} are dequantized to float32"]
    name = "model.layers.0.mlp.up_proj.weight"
    assert weights.scheme(name) == FloatScheme("float32")
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.ffn_up.weight")
    expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    loaded = weights.load(name)
    assert not isinstance(loaded, QuantizedTensor)
    assert np.array_equal(loaded, expected, equal_nan=True)


def test_defaults_are_those_of_the_format(tmp_path: Path) -> None:
    keys = {"attention.head_count_kv": None, "tokenizer.ggml.eos_token_id": 7}
    config, *_ = open_gguf(write(tmp_path / "m.gguf", keys=keys))
    assert config["num_key_value_heads"] == 4
    assert config["head_dim"] == 64 and config["vocab_size"] == 64
    assert config["rope_parameters"] == {"rope_theta": 10_000.0, "rope_type": "default"}
    assert config["tie_word_embeddings"] is True and config["attention_bias"] is False
    assert config["eos_token_id"] == 7 and "bos_token_id" not in config


def test_every_token_that_ends_an_answer_is_kept(tmp_path: Path) -> None:
    keys = {f"tokenizer.ggml.{role}_token_id": i for i, role in enumerate(("bos", "eos", "eot"))}
    config, *_ = open_gguf(write(tmp_path / "m.gguf", keys=keys))
    assert config["bos_token_id"] == 0 and config["eos_token_id"] == [1, 2]


def test_defaults_of_gemma_are_those_of_llama_cpp(tmp_path: Path) -> None:
    config, *_ = open_gguf(write(tmp_path / "2.gguf", "gemma2", {"block_count": 3}))
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert (config["sliding_window"], config["layer_types"]) == (4096, kinds)
    assert (config["attn_logit_softcapping"], config["final_logit_softcapping"]) == (50.0, 30.0)
    assert (config["hidden_activation"], config["query_pre_attn_scalar"]) == (
        "gelu_pytorch_tanh",
        64,
    )
    config, *_ = open_gguf(write(tmp_path / "3.gguf", "gemma3", {"block_count": 2}))
    assert config["layer_types"] == ["full_attention"] * 2 and "sliding_window" not in config
    assert config["final_logit_softcapping"] is None
    keys = {"block_count": 6, "attention.sliding_window": 512}
    config, *_ = open_gguf(write(tmp_path / "3w.gguf", "gemma3", keys))
    assert config["layer_types"] == ["sliding_attention"] * 5 + ["full_attention"]
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 10_000.0
    keys |= {"attention.sliding_window_pattern": 3}
    config, *_ = open_gguf(write(tmp_path / "3p.gguf", "gemma3", keys))
    assert config["layer_types"][2::3] == ["full_attention"] * 2


@pytest.mark.parametrize(("stored", "window"), [(64, 64), (0, None), (None, None)])
def test_a_window_of_all_layers_is_kept(stored: Any, window: Any, tmp_path: Path) -> None:
    keys = {"attention.sliding_window": stored}
    config, *_ = open_gguf(write(tmp_path / "m.gguf", "phi3", keys))
    assert config["sliding_window"] == window


def test_equal_values_per_layer_are_one_value(tmp_path: Path) -> None:
    config, *_ = open_gguf(write(tmp_path / "m.gguf", keys={"attention.head_count": [4, 4]}))
    assert config["num_attention_heads"] == 4


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"arch": "gemma"}, "architecture 'gemma' is not supported"),
    "no layers": ({"keys": {"block_count": 0}}, "'llama.block_count' must be at least 1"),
    "no hidden size": ({"keys": {"embedding_length": None}}, "'llama.embedding_length' is missing"),
    "no heads": ({"keys": {"attention.head_count": None}}, "head_count' is missing"),
    "size as text": ({"keys": {"block_count": "two"}}, "must be a whole number, not 'two'"),
    "heads per layer": ({"keys": {"attention.head_count": [4, 2]}}, "differs between layers"),
    "epsilon of text": ({"keys": {"attention.layer_norm_rms_epsilon": "x"}}, "number above 0"),
    "epsilon missing": ({"keys": {"attention.layer_norm_rms_epsilon": None}}, "is missing"),
    "experts": ({"keys": {"expert_count": 8}}, "'llama.expert_used_count' is missing"),
    "experts elsewhere": (
        {"arch": "qwen2", "keys": {"expert_count": 8}},
        "qwen2 models with 8 experts are not supported",
    ),
    "experts of another number": (
        {
            "keys": {"expert_count": 8, "expert_used_count": 2},
            "extra": {"blk.0.ffn_up_exps.weight": np.zeros((4, 2, 32), np.float32)},
        },
        "not a matrix for each of 8 experts",
    ),
    "split": ({"keys": {"split.count": 2}}, "one part of a split model"),
    "part of nothing": (
        {"keys": {"split.count": 0, "split.no": 3}},
        "part 3 of a split model that has one part",
    ),
    "parts that are not there": (
        {"keys": {"split.count": 1, "split.tensors.count": 4000}},
        "says that it has 4000 tensors, but has 11",
    ),
    "partial rotation": ({"keys": {"rope.dimension_count": 32}}, "rope.dimension_count"),
    "value length": ({"keys": {"attention.value_length": 32}}, "attention.value_length"),
    "scaling": ({"keys": {"rope.scaling.type": "longrope"}}, "rope scaling 'longrope'"),
    "heads do not divide": ({"keys": {"attention.head_count": 3}}, "blk.0.attn_q.weight"),
    "unknown tensor": (
        {"extra": {"blk.0.ffn_gate_exps.weight": np.zeros((2, 2), np.float32)}},
        "'blk.0.ffn_gate_exps.weight' belongs to no supported model family",
    ),
    "windows of some layers": (
        {"arch": "gemma3", "keys": {"attention.sliding_window_pattern": [2]}},
        "'gemma3.attention.sliding_window_pattern' must say yes or no for 1 layers",
    ),
    "window missing": (
        {"arch": "gemma3", "keys": {"attention.sliding_window_pattern": [1]}},
        "'gemma3.attention.sliding_window' is missing",
    ),
    "cap of zero": (
        {"arch": "gemma2", "keys": {"attn_logit_softcapping": 0.0}},
        "'gemma2.attn_logit_softcapping' must be a number above 0",
    ),
    "one list of factors": (
        {"arch": "phi3", "extra": {"rope_factors_short.weight": np.ones(32, np.float32)}},
        "tensor 'rope_factors_long.weight' is missing",
    ),
    "factors": ({"extra": {"rope_freqs.weight": np.zeros(3, np.float32)}}, "must be F32 [32]"),
    "integer type": (
        {"extra": {"blk.0.attn_q.bias": np.zeros(256, np.int32)}},
        "type I32, which is not supported",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_by_name(case: str, tmp_path: Path) -> None:
    options, problem = REFUSED[case]
    path = write(tmp_path / "m.gguf", **options)
    with pytest.raises((FileFormatError, UnsupportedModelError), match=r"m\.gguf") as caught:
        open_gguf(path)
    assert problem in str(caught.value)


def test_a_quantized_vector_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", types={"output_norm.weight": "Q8_0"})
    with pytest.raises(FileFormatError, match=r"'output_norm\.weight' is Q8_0 but not a matrix"):
        open_gguf(path)


@pytest.mark.parametrize(
    ("factor", "problem"),
    [
        (np.ones(2, np.float32), "'blk.0.ffn_up.scale' must be F32 [1], not F32 [2]"),
        (np.ones(1, np.int32), "'blk.0.ffn_up.scale' must be F32 [1], not I32 [1]"),
        (np.zeros(1, np.float32), "'blk.0.ffn_up.scale' holds 0.0, not a number above 0"),
        (np.full(1, np.nan, np.float32), "'blk.0.ffn_up.scale' holds nan"),
    ],
    ids=["shape", "type", "zero", "nan"],
)
def test_a_factor_that_is_none_is_refused(
    factor: npt.NDArray[Any], problem: str, tmp_path: Path
) -> None:
    types, extra = {"blk.0.ffn_up.weight": "NVFP4"}, {"blk.0.ffn_up.scale": factor}
    path = write(tmp_path / "m.gguf", types=types, extra=extra)
    with pytest.raises((FileFormatError, UnsupportedModelError)) as caught:
        open_gguf(path)[1].load("model.layers.0.mlp.up_proj.weight")
    assert problem in str(caught.value) or "type I32" in str(caught.value)


def test_small_floats_are_multiplied_by_their_factor(tmp_path: Path) -> None:
    """Scales of inputs are for processors that round these: not used."""
    types = {"blk.0.ffn_up.weight": "NVFP4", "blk.0.ffn_down.weight": "NVFP4"}
    three = np.full(1, 3, np.float32)
    extra = {"blk.0.ffn_up.scale": three, "blk.0.ffn_up.input_scale": three}
    path = write(tmp_path / "m.gguf", types=types, extra=extra)
    weights = open_gguf(path)[1]
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, factor in (("up", 3), ("down", 1)):
        tensor = stored[f"blk.0.ffn_{name}.weight"]
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type) * np.float32(factor)
        found = weights.load(f"model.layers.0.mlp.{name}_proj.weight")
        assert isinstance(found, QuantizedTensor)
        np.testing.assert_allclose(found.dequantize(), expected, rtol=2**-22)
