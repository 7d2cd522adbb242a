"""The TensorRT executor against the oracle: scheduler, pages, addresses, as far as no GPU goes."""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.engine_file import ENGINE_FILE
from compile.model import Model
from compile.onnx_contract import GRAPH_FILE
from compile.open_model import open_model
from quant.format.errors import InputError
from quant.format.scheme import IntScheme, PerChannel, PerGroup
from runtime.engine.batch import StepBatch
from runtime.executors.tensorrt import TensorRTExecutor, cuda
from runtime.executors.tensorrt.executor import pieces
from runtime.executors.tensorrt.memory import runs_of
from runtime.executors.torch import TorchExecutor
from runtime.loading import load_executor, resolve_backend
from tests.runtime.executors.onnx_models import (
    MIXED,
    NUM_PAGES,
    PAGE_SIZE,
    run_schedule,
    sequences_of,
)
from tests.runtime.executors.tensorrt_host import HostDevice, HostPlatform, artifact_of, with_limits
from tests.runtime.executors.test_onnx_engine import answers_of, requests
from tests.tiny import tiny_model

ROUNDINGS = 12
"""To float16, in each layer; see tests/compile/to_tensorrt/test_halves.py."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "float": ("llama", {"tied": True}),
    "int4": ("qwen3", {"scheme": IntScheme(4, True, PerGroup(32))}),
    "int4-zero-points": ("qwen2", {"scheme": IntScheme(4, False, PerGroup(32))}),
    "int8-window": ("mistral", {"scheme": IntScheme(8, True, PerChannel()), "sliding_window": 5}),
}


def executor_of(artifact: Model, platform: HostPlatform, **options: Any) -> TensorRTExecutor:
    options = {"num_pages": NUM_PAGES, "page_size": PAGE_SIZE, **options}
    return TensorRTExecutor(artifact, open_platform=platform, **options)


@pytest.fixture
def artifact(tmp_path: Path) -> Model:
    return artifact_of(tmp_path / "artifact", tiny_model())


@pytest.mark.parametrize("limits", [{}, {"tokens": 3, "sequences": 2}], ids=["wide", "narrow"])
@pytest.mark.parametrize("case", CASES)
def test_a_mixed_schedule_gives_the_oracles_logits(
    tmp_path: Path, case: str, limits: dict[str, int]
) -> None:
    family, options = CASES[case]
    model, platform = tiny_model(family, **options), HostPlatform()
    artifact = artifact_of(tmp_path, model, with_limits(**limits))
    oracle = TorchExecutor(model, num_pages=NUM_PAGES, page_size=PAGE_SIZE)
    executor, sequences = executor_of(artifact, platform), sequences_of(MIXED)
    expected = run_schedule(oracle, MIXED, sequences)
    found = run_schedule(executor, MIXED, sequences)
    for ours, theirs in zip(found, expected, strict=True):
        bound = (ROUNDINGS * model.program.sizes.layers + 2) * 2.0**-11 * np.abs(theirs).max()
        assert np.abs(ours - theirs).max() < bound
    for shapes in platform.contexts[0].seen:
        assert shapes["token_ids"][0] <= limits.get("tokens", 32)
        assert shapes["page_table"][0] <= limits.get("sequences", 4)


def test_answers_are_the_oracles_whatever_the_company(tmp_path: Path) -> None:
    model = tiny_model("mistral", sliding_window=9)
    options: Any = {"num_pages": 14, "page_size": PAGE_SIZE}
    artifact = artifact_of(tmp_path, model)
    expected, preemptions = answers_of(TorchExecutor(model, **options), requests())
    found, ours = answers_of(executor_of(artifact, HostPlatform(), **options), requests())
    assert preemptions == ours > 0
    assert found == expected


def test_all_memory_is_given_back(artifact: Model) -> None:
    platform = HostPlatform()
    executor = executor_of(artifact, platform)
    run_schedule(executor, MIXED, sequences_of(MIXED))
    assert platform.host.arrays
    executor.close()
    executor.close()
    assert not platform.host.arrays and not platform.host.open


def test_the_pool_is_as_large_as_it_was_asked_to_be(artifact: Model) -> None:
    page_bytes = 2 * PAGE_SIZE * 2 * 16 * 4
    sized = executor_of(artifact, HostPlatform(), num_pages=None, kv_cache_bytes=10 * page_bytes)
    assert sized.num_pages == 10
    free = executor_of(artifact, HostPlatform(), num_pages=None)
    assert free.num_pages == 1000, "16 contexts of 64 pages, and the profile takes 1000"
    small = HostPlatform(host=HostDevice(nbytes=80 * page_bytes))
    assert executor_of(artifact, small, num_pages=None).num_pages == 70
    with pytest.raises(InputError, match="give it 1 MB at the least"):
        executor_of(artifact, HostPlatform(), num_pages=None, kv_cache_bytes=1)


@pytest.mark.parametrize(
    ("platform", "sentence"),
    [
        (
            HostPlatform(version="1.3.0"),
            r"built by tensorrt_rtx 1.2.3, and 1.3.0 is installed; .*:sm89",
        ),
        (
            HostPlatform(host=HostDevice("sm120")),
            r"built for sm86, sm89 and this GPU is sm120; .* --target tensorrt:sm120",
        ),
    ],
    ids=["version", "card"],
)
def test_another_version_or_gpu_is_one_sentence(
    artifact: Model, platform: HostPlatform, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        executor_of(artifact, platform)
    assert not platform.contexts and not platform.host.arrays


def test_a_large_engine_of_other_bytes_is_refused_without_being_read(artifact: Model) -> None:
    assert artifact.directory is not None
    manifest = artifact.directory / "manifest.json"
    fields = json.loads(manifest.read_text())
    fields["engine"]["engine_bytes"] = 1 << 40
    manifest.write_text(json.dumps(fields))
    with (artifact.directory / ENGINE_FILE).open("r+b") as file:
        file.truncate(1 << 40)
    started = time.process_time()
    with pytest.raises(InputError, match="build it again with: coldpress build"):
        executor_of(artifact, HostPlatform())
    assert time.process_time() - started < 1


def test_an_engine_without_a_manifest_is_refused(artifact: Model) -> None:
    assert artifact.directory is not None
    (artifact.directory / "manifest.json").unlink()
    with pytest.raises(InputError, match="nothing tells what the engine was built for"):
        executor_of(open_model(artifact.directory), HostPlatform())


def test_an_engine_is_opened_by_its_own_name_and_not_without_its_graph(artifact: Model) -> None:
    assert artifact.directory is not None
    found = open_model(artifact.directory / ENGINE_FILE)
    assert (found.kind, found.directory) == ("tensorrt", artifact.directory)
    (artifact.directory / GRAPH_FILE).unlink()
    with pytest.raises(InputError, match="copy them beside it"):
        open_model(artifact.directory)


def test_pages_of_another_size_are_refused(artifact: Model) -> None:
    with pytest.raises(InputError, match="pages of 4 to 4 tokens, and not of 32"):
        executor_of(artifact, HostPlatform(), page_size=32)


def test_a_model_without_an_engine_is_refused() -> None:
    with pytest.raises(InputError, match="--target tensorrt:smNN"):
        executor_of(tiny_model(), HostPlatform())


def test_a_machine_without_a_gpu_is_told_what_to_do(
    artifact: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra 'tensorrt' is not installed")
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-that-is-not-there.so")
    assert resolve_backend(artifact, "auto") == "tensorrt"
    with pytest.raises(InputError, match="--backend onnx and --backend cpu"):
        load_executor(artifact, context_tokens=64, page_size=PAGE_SIZE)


def test_the_numbers_beside_an_engine_run_on_the_cpu_as_well(artifact: Model) -> None:
    options: Any = {"num_pages": NUM_PAGES, "page_size": PAGE_SIZE}
    oracle = TorchExecutor(tiny_model(), **options)
    expected = run_schedule(oracle, MIXED, sequences_of(MIXED))
    engine = run_schedule(executor_of(artifact, HostPlatform()), MIXED, sequences_of(MIXED))
    for backend, others, tolerance in (("cpu", expected, 1e-4), ("onnx", engine, 1e-3)):
        executor = load_executor(artifact, backend=backend, exact=True, **options)
        found = run_schedule(executor, MIXED, sequences_of(MIXED))
        for ours, theirs in zip(found, others, strict=True):
            assert np.allclose(ours, theirs, atol=tolerance)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 12))
def test_pieces_are_the_batch_in_order(lengths: list[int], tokens: int) -> None:
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = np.arange(starts[-1], dtype=np.int32)
    positions = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
    rows = ids[::3]
    batch = StepBatch(ids, positions, starts, np.ones((len(lengths), 9), np.int32), rows)
    ran: list[list[int]] = [[] for _ in lengths]
    answered: dict[int, int] = {}
    for piece, wanted in pieces(batch, tokens):
        counts = np.diff(piece.query_starts)
        assert counts.max(initial=0) <= tokens
        for sequence, (start, count) in enumerate(zip(piece.query_starts, counts, strict=False)):
            ran[sequence] += piece.token_ids[start : start + count].tolist()
        assert (piece.positions == positions[piece.token_ids]).all()
        answered |= dict(zip(wanted.tolist(), piece.token_ids[piece.logit_rows], strict=True))
    assert ran == [ids[start:end].tolist() for start, end in pairwise(starts)]
    assert [answered[index] for index in range(len(rows))] == rows.tolist()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20, unique=True))
def test_runs_cover_every_row_once(slots: list[int]) -> None:
    copied: dict[int, int] = {}
    for slot, row, count in runs_of(np.array(slots, np.int64)):
        copied |= {row + index: slot + index for index in range(count)}
    assert copied == dict(enumerate(slots))
