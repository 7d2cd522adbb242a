"""The built file read by gguf's own reader, bit for bit against the checkpoint."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from compile.families import build_program
from compile.from_gguf import open_gguf
from compile.gguf_names import ARCHITECTURES, gguf_name, hugging_face_name
from compile.model import Model
from compile.to_gguf import build_gguf, build_model, plan_gguf, plan_model
from quant.format.errors import InputError
from quant.format.gguf_file import GgufFile
from quant.format.scheme import FloatScheme, IntScheme, PerChannel, PerGroup, Scheme
from quant.format.tensor import QuantizedTensor, Weight
from tests.tiny import GEMMAS, LLAMA3, tiny_checkpoint, tiny_config, tiny_tensors, write_tokenizer

gguf = pytest.importorskip("gguf")


class Weights:
    """A WeightSource in memory; counts what is read."""

    def __init__(self, tensors: Mapping[str, Weight]) -> None:
        self.tensors = tensors
        self.read: list[str] = []

    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def scheme(self, name: str) -> Scheme:
        weight = self.tensors[name]
        if isinstance(weight, QuantizedTensor):
            return weight.scheme
        dtype: Any = str(weight.dtype)
        return FloatScheme(dtype)

    def load(self, name: str) -> Weight:
        self.read.append(name)
        return self.tensors[name]


def as_model(source: Weights, config: Mapping[str, Any], folder: Path) -> Model:
    """A checkpoint's Model without its files."""
    program = build_program(config, source.scheme, source.tensors.__contains__)
    return Model(folder, "huggingface", program, source, config, folder, None)


def random_quantized(
    scheme: IntScheme, shape: tuple[int, int], random: np.random.Generator, scale_dtype: Any
) -> QuantizedTensor:
    groups = (shape[0], scheme.groups(shape[1]))
    codes = random.integers(scheme.qmin, scheme.qmax + 1, shape).astype(np.int8)
    scale = random.uniform(0.001, 0.01, groups).astype(scale_dtype)
    zero = random.integers(scheme.qmin, scheme.qmax + 1, groups).astype(np.int8)
    return QuantizedTensor(scheme, codes, scale, None if scheme.symmetric else zero)


def quantized_weights(
    config: Mapping[str, Any], scheme: IntScheme, scale_dtype: Any = ml_dtypes.bfloat16
) -> Weights:
    """Every linear of a tiny model in `scheme`, the rest as stored."""
    random = np.random.default_rng(0)
    tensors: dict[str, Weight] = dict(tiny_tensors(config))
    for name, weight in tensors.items():
        if name.endswith("_proj.weight"):
            rows, columns = weight.shape
            tensors[name] = random_quantized(scheme, (rows, columns), random, scale_dtype)
    return Weights(tensors)


def floats(weight: Weight) -> npt.NDArray[np.float32]:
    if isinstance(weight, QuantizedTensor):
        return weight.dequantize()
    return weight.astype(np.float32)


def read_by_gguf(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor as float32, by the gguf package alone."""
    tensors = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        tensors[tensor.name] = np.asarray(values, np.float32)
    return tensors


def llama_rows(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """The row order of llama.cpp's converter, one row at a time."""
    size = weight.shape[0] // heads
    order = []
    for head in range(heads):
        for pair in range(size // 2):
            order += [head * size + pair, head * size + size // 2 + pair]
    return np.stack([weight[row] for row in order])


def expected_tensors(
    config: Mapping[str, Any], weights: Mapping[str, Weight]
) -> dict[str, npt.NDArray[np.float32]]:
    expected = {}
    for name, weight in weights.items():
        values = floats(weight)
        if config["model_type"] in ("llama", "mistral"):
            if ".q_proj." in name:
                values = llama_rows(values, config["num_attention_heads"])
            if ".k_proj." in name:
                values = llama_rows(values, config["num_key_value_heads"])
        if config["model_type"] in GEMMAS and name.endswith("norm.weight"):
            values = values + np.float32(1)
        renamed = gguf_name(name, ARCHITECTURES[config["model_type"]])
        assert renamed is not None
        expected[renamed] = values
    return expected


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a tokenizer and nothing else."""
    write_tokenizer(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"]
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_floats_are_kept_bit_for_bit(family: str, dtype: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {} if family == "phi3" else {"head_dim": 32}
    tied = family == "gemma2"
    directory = tiny_checkpoint(tmp_path / "model", family, dtype=dtype, tied=tied, **options)
    config = json.loads((directory / "config.json").read_text())
    built = build_gguf(directory, tmp_path / "model.gguf")
    assert built.file_bytes == (tmp_path / "model.gguf").stat().st_size
    found = read_by_gguf(tmp_path / "model.gguf")
    expected = expected_tensors(config, tiny_tensors(config))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


SCHEMES = {
    IntScheme(4, True, PerGroup(32)): "Q4_0",
    IntScheme(4, True, PerChannel()): "Q4_0",
    IntScheme(4, False, PerGroup(64)): "Q5_0",
    IntScheme(8, True, PerGroup(128)): "Q8_0",
    IntScheme(8, True, PerChannel()): "Q8_0",
    IntScheme(8, False, PerGroup(32)): "F32",
    IntScheme(4, True, PerGroup(48)): "F32",
}


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_integers_are_kept_without_loss(family: str, scheme: IntScheme, folder: Path) -> None:
    config = tiny_config(family, hidden_size=96, intermediate=192)
    source = quantized_weights(config, scheme)
    built = build_model(as_model(source, config, folder), folder / "model.gguf")
    assert sorted(source.read) == sorted(source.tensors), "each tensor is read exactly once"
    kinds = {row.type.name for row in built.rows if "_proj.weight" in "".join(row.sources)}
    assert kinds == {SCHEMES[scheme]}
    found = read_by_gguf(folder / "model.gguf")
    expected = expected_tensors(config, source.tensors)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


@pytest.mark.parametrize("scheme", [s for s, kind in SCHEMES.items() if kind != "F32"], ids=str)
def test_reading_it_back_gives_the_same_integers(scheme: IntScheme, folder: Path) -> None:
    config = tiny_config("llama", hidden_size=64, intermediate=128)
    source = quantized_weights(config, scheme)
    build_model(as_model(source, config, folder), folder / "model.gguf")
    _, weights, _, _ = open_gguf(folder / "model.gguf")
    for name, weight in source.tensors.items():
        back = weights.load(name)
        assert np.array_equal(floats(back), floats(weight)), name
        if isinstance(weight, QuantizedTensor):
            assert isinstance(back, QuantizedTensor)
            net = weight.codes.astype(np.int16)
            if weight.zero_point is not None:
                net = net - weight.zero_point[:, weight.column_groups()]
            assert np.array_equal(back.codes, net)


@pytest.mark.parametrize("type_name", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0"])
def test_float_checkpoints_are_rounded_as_asked(type_name: str, tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path / "model", "qwen2", intermediate=144)
    config = json.loads((directory / "config.json").read_text())
    built = build_gguf(directory, tmp_path / "model.gguf", type_name)
    kind = gguf.GGMLQuantizationType[type_name.upper()]
    blocks = type_name[0] == "q"
    rows = {row.tensor: row for row in built.rows}
    for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors:
        stored = tiny_tensors(config)[hugging_face_name(tensor.name) or ""]
        exact = stored.astype(np.float32)
        if len(tensor.shape) == 1:
            assert tensor.tensor_type.name == "F32"
        elif blocks and (tensor.name.endswith("ffn_down.weight") or "blk" not in tensor.name):
            assert tensor.tensor_type.name == "BF16" and "16 bit" in rows[tensor.name].reason
        else:
            assert tensor.tensor_type == kind
            expected = gguf.quants.quantize(exact, kind)
            assert expected.tobytes() == tensor.data.tobytes(), tensor.name
            continue
        assert np.array_equal(gguf.quants.dequantize(tensor.data, tensor.tensor_type), exact)


def test_the_header_says_what_the_model_is(folder: Path) -> None:
    config = tiny_config("llama", rope_scaling=LLAMA3, rope_theta=5e5, tied=True)
    source = quantized_weights(config, IntScheme(4, True, PerGroup(32)))
    build_model(as_model(source, config, folder), folder / "model.gguf")
    fields = gguf.GGUFReader(folder / "model.gguf").fields
    values = {name: field.contents() for name, field in fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q4_0,
        "general.quantization_version": 2,
        "llama.block_count": 2,
        "llama.context_length": 256,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 5e5,
        "llama.vocab_size": 384,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {key: values[key] for key in expected} == expected
    assert "llama.rope.scaling.type" not in values
    assert len(values["tokenizer.ggml.tokens"]) == 384
    assert "<|im_start|>" in values["tokenizer.chat_template"]


def test_llama3_scaling_becomes_a_tensor_of_divisors(folder: Path) -> None:
    """Waves that turn more than 4 times in the trained 64 tokens are kept, those that turn less
    than once are 8 times slower, and in between the two frequencies are mixed."""
    config = tiny_config("llama", rope_scaling=LLAMA3, rope_theta=5e5, head_dim=64)
    build_model(as_model(Weights(tiny_tensors(config)), config, folder), folder / "model.gguf")
    found = read_by_gguf(folder / "model.gguf")["rope_freqs.weight"]
    for pair, divisor in enumerate(found):
        frequency = 5e5 ** (-2 * pair / 64)
        turns = 64 * frequency / (2 * np.pi)
        share = min(max((turns - 1) / 3, 0), 1)
        mixed = share * frequency + (1 - share) * frequency / 8
        assert np.isclose(frequency / divisor, mixed, rtol=1e-6)
    assert found[0] == 1 and found[-1] == 8


def test_two_builds_have_the_same_bytes(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path / "model", "qwen3")
    for name in ("a", "b"):
        build_gguf(directory, tmp_path / name, "q4_0")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_plan_is_exact_and_reads_no_data(folder: Path) -> None:
    config = tiny_config("llama", rope_scaling=LLAMA3)
    source = quantized_weights(config, IntScheme(4, False, PerGroup(32)))
    plan = plan_model(as_model(source, config, folder))
    assert source.read == []
    seen: list[tuple[int, int]] = []
    built = build_model(
        as_model(source, config, folder),
        folder / "m.gguf",
        on_progress=lambda *step: seen.append(step[:2]),
    )
    assert built.rows == plan.rows
    assert plan.file_bytes == (folder / "m.gguf").stat().st_size
    file = GgufFile(folder / "m.gguf")
    assert {row.tensor: row.nbytes for row in plan.rows} == {
        name: tensor.nbytes for name, tensor in file.tensors.items()
    }
    assert seen == [(step, len(plan.rows)) for step in range(len(plan.rows) + 1)]


def test_tied_embeddings_are_written_once(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path / "model", "llama", tied=True)
    names = {row.tensor for row in plan_gguf(directory).rows}
    assert "token_embd.weight" in names and "output.weight" not in names
    directory = tiny_checkpoint(tmp_path / "untied", "llama", tied=False)
    assert "output.weight" in {row.tensor for row in plan_gguf(directory).rows}


def refuse(
    source: Weights, config: Mapping[str, Any], folder: Path, match: str, type_name: str = "auto"
) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match=match):
        build_model(as_model(source, config, folder), folder / "bad.gguf", type_name)
    assert sorted(folder.iterdir()) == before


def test_what_gguf_cannot_hold_is_refused_with_the_reason(folder: Path) -> None:
    config = tiny_config("llama")
    asymmetric = quantized_weights(config, IntScheme(4, False, PerGroup(32)))
    refuse(asymmetric, config, folder, "'q9_k' is not known", type_name="q9_k")
    wide = quantized_weights(config, IntScheme(4, True, PerGroup(32)), np.float32)
    refuse(wide, config, folder, "does not fit float16")
    extra = Weights(tiny_tensors(config) | {"model.extra.weight": np.zeros((2, 2), np.float32)})
    refuse(extra, config, folder, "model.extra.weight")
    biased = tiny_config("qwen3", bias=True)
    refuse(Weights(tiny_tensors(biased)), biased, folder, "no such bias in qwen3")
    scaled = tiny_config("qwen2", rope_scaling=LLAMA3)
    refuse(Weights(tiny_tensors(scaled)), scaled, folder, "'llama3'")


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path / "model")
    (directory / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: the file is missing"):
        build_gguf(directory, tmp_path / "model.gguf")


def test_f32_of_integers_is_their_value(folder: Path) -> None:
    config = tiny_config("mistral")
    source = quantized_weights(config, IntScheme(4, False, PerGroup(32)), np.float32)
    build_model(as_model(source, config, folder), folder / "model.gguf", "f32")
    found = read_by_gguf(folder / "model.gguf")
    for name, values in expected_tensors(config, source.tensors).items():
        assert np.array_equal(found[name], values)


def test_a_window_limits_the_context(folder: Path) -> None:
    config = tiny_config("mistral", sliding_window=32)
    plan = plan_model(as_model(Weights(tiny_tensors(config)), config, folder))
    assert any("window of 32" in note for note in plan.notes)
    assert plan_gguf_context(plan.layout.header) == 32


def plan_gguf_context(header: bytes) -> int:
    at = header.index(b"llama.context_length") + len("llama.context_length") + 4
    return int.from_bytes(header[at : at + 4], "little")


def test_names_are_those_of_gguf_and_invert() -> None:
    for family in ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"):
        architecture = ARCHITECTURES[family]
        table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.name.upper()], 2)
        for name in tiny_tensors(tiny_config(family, tied=family == "gemma2")):
            theirs = table.get_name(name, try_suffixes=(".weight", ".bias"))
            assert gguf_name(name, architecture) == theirs
            assert hugging_face_name(theirs, architecture) == name
    assert gguf_name("model.layers.0.mlp.experts.weight") is None
    assert gguf_name("model.norm.scale") is None
    assert hugging_face_name("blk.0.ffn_gate_exps.weight") is None
