"""Mixes beside those of llama.cpp's own quantizer: the same type for each tensor, lower losses."""

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from compile.gguf_names import ARCHITECTURES, gguf_name
from compile.open_model import open_model
from compile.to_gguf import build_gguf
from quant.format.ggml_mix import facts_of, file_type, mix_type
from quant.format.gguf_file import GgufFile
from tests.tiny import tiny_checkpoint

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
from tests.compile.to_gguf.test_llama_cpp import PROMPT, open_llama  # noqa: E402

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.filterwarnings("ignore")

MIXES = (
    *("Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L"),
    *("Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS"),
)
MODELS: dict[str, dict[str, Any]] = {
    "grouped": {"hidden_size": 256, "intermediate": 512, "heads": 8, "kv_heads": 2},
    "tied": {"hidden_size": 256, "intermediate": 96, "tied": True},
    "narrow": {"hidden_size": 64, "intermediate": 96, "heads": 4, "kv_heads": 1},
    "narrow-tied": {
        "hidden_size": 96,
        "intermediate": 256,
        "heads": 3,
        "kv_heads": 1,
        "tied": True,
    },
    "fused": {"family": "phi3", "hidden_size": 256, "intermediate": 256, "kv_heads": 2},
}


@pytest.fixture(scope="module", params=MODELS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many layers as it takes for the rules of eighths and sixteenths to show."""
    return built(tmp_path_factory.mktemp("mixes"), layers=16, **MODELS[request.param])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("small"), layers=1, **MODELS["grouped"])


def built(folder: Path, family: str = "llama", **options: Any) -> Path:
    tiny_checkpoint(folder / "model", family, vocab=320, **options)
    build_gguf(folder / "model", folder / "f32.gguf", "f32")
    return folder


def quantized_by_llama_cpp(source: Path, out: Path, mix: str) -> Path:
    """With an importance matrix of ones, so that rules which ask for one apply."""
    tensors = [t for t in GgufFile(source).tensors.values() if t.name.startswith("blk.")]
    counts = {t: t.shape[-1] * (t.shape[0] if len(t.shape) == 3 else 1) for t in tensors}
    ones = [(t.name.encode(), np.ones(count, np.float32)) for t, count in counts.items()]
    entries = (llama_cpp.llama_model_imatrix_data * (len(ones) + 1))()
    for entry, (name, values) in zip(entries, ones, strict=False):
        entry.name, entry.size = name, values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = 1, file_type(mix)
    params.imatrix = ctypes.cast(entries, type(params.imatrix))
    paths = str(source).encode(), str(out).encode()
    assert llama_cpp.llama_model_quantize(*paths, ctypes.byref(params)) == 0
    return out


@pytest.mark.parametrize("mix", MIXES)
def test_every_tensor_has_the_type_that_llama_cpp_gives_it(
    mix: str, source: Path, tmp_path: Path
) -> None:
    theirs = GgufFile(quantized_by_llama_cpp(source / "f32.gguf", tmp_path / "theirs.gguf", mix))
    model = open_model(source / "model")
    facts = replace(facts_of(model.config), tied=model.program.tied_embeddings)
    for name, shape in model.program.weights().items():
        expected = "F32"
        if len(shape) == 2:
            expected = str(mix_type(mix, name.removesuffix(".weight"), shape[1], facts))
        tensor = gguf_name(name, ARCHITECTURES[model.program.family])
        assert expected == theirs.tensors[str(tensor)].type.name, name
    assert file_type(mix) == theirs.metadata["general.file_type"]


def values(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type)
        for t in gguf.GGUFReader(path).tensors
        if len(t.shape) == 2
    }


@pytest.mark.parametrize("mix", ["Q3_K_M", "Q4_K_M", "Q6_K", "IQ4_XS"])
def test_searched_scales_lose_less_than_those_of_llama_cpp(
    mix: str, small: Path, tmp_path: Path
) -> None:
    theirs = values(quantized_by_llama_cpp(small / "f32.gguf", tmp_path / "theirs.gguf", mix))
    build_gguf(small / "model", tmp_path / "ours.gguf", mix.lower())
    ours, original = values(tmp_path / "ours.gguf"), values(small / "f32.gguf")
    for name, weight in original.items():
        lost = float(np.square(ours[name] - weight).sum())
        assert lost <= float(np.square(theirs[name] - weight).sum()), name


@pytest.mark.parametrize("mix", ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS"])
def test_llama_cpp_computes_with_the_blocks_as_we_read_them(
    mix: str, small: Path, tmp_path: Path
) -> None:
    """It rounds activations to 8 bits in runs of 32 or 256: a few per mille of noise per product,
    far below what rounding the weights does."""
    executors = pytest.importorskip("runtime.executors.torch")
    from runtime.engine.batch import StepBatch

    build_gguf(small / "model", tmp_path / "m.gguf", mix.lower())
    model = open_llama(tmp_path / "m.gguf")
    model.eval(PROMPT)
    theirs = np.array(model.scores[: len(PROMPT)])
    count = len(PROMPT)
    step = StepBatch(
        token_ids=np.array(PROMPT, np.int32),
        positions=np.arange(count, dtype=np.int32),
        query_starts=np.array([0, count], np.int32),
        page_table=np.array([[1]], np.int32),
        logit_rows=np.arange(count, dtype=np.int32),
    )
    ours = executors.TorchExecutor(open_model(tmp_path / "m.gguf"), num_pages=2).step(step)
    assert np.abs(theirs - ours).mean() < 0.05 * ours.std()
