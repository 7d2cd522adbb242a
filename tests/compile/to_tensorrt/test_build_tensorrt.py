"""Engines of tiny models, built ahead of time for GPUs that are not here."""

import json
from pathlib import Path
from typing import Any

import pytest

from coldpress.pressing import build
from compile.engine_file import ENGINE_FILE, EngineLimits, check_engine, ends_sha256, read_facts
from compile.families import FAMILIES
from compile.manifest import file_sha256
from compile.onnx_bytes import FP8
from compile.onnx_contract import GRAPH_FILE
from compile.open_model import open_model
from compile.to_onnx.build import build_model
from compile.to_tensorrt.api import BuildApi
from compile.to_tensorrt.build import build_engine, use_halves
from compile.to_tensorrt.cards import check_types
from compile.verify import verify
from quant.format.errors import CheckFailedError, InputError
from quant.format.scheme import IntScheme, PerChannel, PerGroup
from quant.format.tensor import QuantizedTensor
from tests.compile.to_onnx.fp8_models import fp8_model
from tests.runtime.executors.onnx_models import TABLE
from tests.tiny import round_to_nearest, tiny_checkpoint, tiny_model

pytest.importorskip("tensorrt_rtx", reason="the extra 'tensorrt' is not installed")

SCHEMES = {
    "float": None,
    "int4": IntScheme(4, True, PerGroup(64)),
    "int4-zero-points": IntScheme(4, False, PerGroup(32)),
    "int8": IntScheme(8, True, PerChannel()),
}
NO_KERNEL = "no single kernel for attention"
TALL: dict[str, Any] = {"vocab": 16384, "hidden_size": 512, "layers": 1, "heads": 8}
WIDE: dict[str, Any] = {"hidden_size": 512, "intermediate": 1024, "layers": 1, "heads": 8}


@pytest.mark.parametrize("name", SCHEMES)
def test_a_tensorrt_artifact_holds_the_checkpoints_numbers(tmp_path: Path, name: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", scheme=SCHEMES[name], tied=name == "int8")
    outcome = build(checkpoint, tmp_path / "out", target="tensorrt:sm120,sm89")
    report = verify(tmp_path / "out", checkpoint)
    assert report.passed and report.tensors and set(report.counts) == {"equal"}
    assert open_model(tmp_path / "out").kind == "tensorrt"
    facts = read_facts(tmp_path / "out")
    assert facts.cards == ("sm89", "sm120") and facts.target == "tensorrt:sm89+sm120"
    assert facts.builder == "tensorrt_rtx" and facts.builder_version
    assert facts.graph_sha256 == file_sha256(tmp_path / "out" / GRAPH_FILE)
    assert facts.engine_bytes == outcome["bytes"]
    assert facts.profile["T"] == (1, 16, 256) and facts.profile["M"] == (1, 2, 32)
    assert check_engine(tmp_path / "out", facts) == tmp_path / "out" / ENGINE_FILE


def test_integers_stay_packed_in_the_engine(tmp_path: Path) -> None:
    sizes = {}
    for name in ("float", "int4", "int8"):
        checkpoint = tiny_checkpoint(tmp_path / name, scheme=SCHEMES[name], **WIDE)
        build(checkpoint, tmp_path / f"{name}-out", target="tensorrt:sm89")
        facts = read_facts(tmp_path / f"{name}-out")
        sizes[name] = (facts.engine_bytes, facts.packed_bytes)
    # What surrounds the weights is the same in all of them, so it is not in the differences.
    for name in ("int4", "int8"):
        saved, expected = (sizes["float"][index] - sizes[name][index] for index in (0, 1))
        assert expected > 1.5e6, "the layers are too small to tell"
        assert 0.9 * expected < saved < 1.2 * expected


def test_an_engine_that_unpacks_its_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    monkeypatch.setattr("compile.to_tensorrt.sizes.packed_bytes", lambda *_: 0)
    monkeypatch.setattr("compile.to_tensorrt.sizes.ENGINE_BYTES", 0)
    with pytest.raises(CheckFailedError, match="unpacked"):
        build(checkpoint, tmp_path / "out", target="tensorrt:sm89")
    assert not (tmp_path / "out").exists()


def test_a_tied_table_of_integers_is_held_once(tmp_path: Path) -> None:
    """Looked up by token and multiplied, with zero points."""
    table = round_to_nearest(wide_table(), IntScheme(8, False, PerGroup(64)))
    model = tiny_model(tied=True, weights={TABLE: table}, **TALL)
    build_model(model, tmp_path, version="test")
    use_halves(tmp_path, "test")
    api = BuildApi(here=False)
    facts = build_engine(tmp_path, model.program, "tensorrt:sm89", api, ("sm89",)).facts
    held = facts.engine_bytes - facts.packed_bytes
    assert held < table.codes.nbytes, "a second copy"


def wide_table() -> Any:
    values = tiny_model(tied=True, **TALL).weights.load(TABLE)
    assert not isinstance(values, QuantizedTensor)
    return values


def test_turing_takes_bytes_and_halves_alone(tmp_path: Path) -> None:
    options: dict[str, Any] = {"scheme": SCHEMES["int8"], "dtype": "float16"}
    build(tiny_checkpoint(tmp_path / "int8", **options), tmp_path / "out", target="tensorrt:sm75")
    assert read_facts(tmp_path / "out").cards == ("sm75",)
    for options in ({"dtype": "bfloat16"}, {"dtype": "float16", "scheme": SCHEMES["int4"]}):
        checkpoint = tiny_checkpoint(tmp_path / str(len(options)), **options)
        with pytest.raises(InputError, match=r"sm75 \(Turing.*(int4|bfloat16), which tensor model"):
            build(checkpoint, tmp_path / "other", target="tensorrt:sm75+sm89")
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["dynamic", "block"])
def test_fp8_becomes_an_engine_where_there_are_instructions_for_it(
    tmp_path: Path, name: str
) -> None:
    model = fp8_model(name)
    build_model(model, tmp_path, "fp8", version="test")
    use_halves(tmp_path, "test")
    api, cards = BuildApi(here=False), ("sm89", "sm120")
    facts = build_engine(tmp_path, model.program, "tensorrt:sm89+sm120", api, cards).facts
    assert facts.cards == cards
    with pytest.raises(InputError, match=r"sm86 .* computes nothing with float8e4m3fn"):
        check_types(("sm86", "sm89"), {"model.weight": FP8})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_becomes_an_engine(tmp_path: Path, family: str) -> None:
    options: dict[str, Any] = {"scheme": SCHEMES["int4-zero-points"], "layers": 1}
    checkpoint = tiny_checkpoint(tmp_path / "model", family, **options)
    outcome = build(checkpoint, tmp_path / "out", target="tensorrt:sm80+sm121")
    assert verify(tmp_path / "out", checkpoint).passed
    assert not any(NO_KERNEL in note for note in outcome["notes"])
    told = any("every expert runs for every token" in note for note in outcome["notes"])
    assert told == (family in ("mixtral", "qwen3_moe"))


def test_heads_without_a_kernel_of_their_own_are_told_of(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"heads": 2, "kv_heads": 1, "layers": 1, "head_dim": 320}
    checkpoint = tiny_checkpoint(tmp_path / "model", **sizes)
    outcome = build(checkpoint, tmp_path / "out", target="tensorrt:sm89")
    assert any(NO_KERNEL in note for note in outcome["notes"])


def test_an_engine_of_other_bytes_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(tiny_checkpoint(tmp_path / "model"), out, target="tensorrt:sm89")
    facts, engine = read_facts(out), out / ENGINE_FILE
    whole = engine.read_bytes()
    for damaged in (bytes(100), bytes(len(whole)), whole[:-1], b"\0" + whole[1:], whole + b"\0"):
        engine.write_bytes(damaged)
        with pytest.raises(InputError, match=r"build it again with: .*--target tensorrt:sm89"):
            check_engine(out, facts)
    engine.write_bytes(whole)
    assert ends_sha256(engine) == facts.ends_sha256
    graph = out / GRAPH_FILE
    graph.write_bytes(graph.read_bytes() + b"\0\0")
    with pytest.raises(InputError, match="not the graph that the engine was built from"):
        check_engine(out, facts)
    engine.unlink()
    with pytest.raises(InputError, match="is missing"):
        check_engine(out, facts)


@pytest.mark.parametrize(
    "change",
    [
        {"builder": "nobody"},
        {"engine_bytes": -1},
        {"engine_bytes": "many"},
        {"limits": {"context": 1}},
        {"limits": dict.fromkeys(vars(EngineLimits(1)), 0)},
        {"profile": {"T": [1, 2]}},
        {"profile": 3},
        {"cards": [89]},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_manifest_that_does_not_tell_of_its_engine_is_refused(
    artifact: Path, change: dict[str, Any]
) -> None:
    path = artifact / "manifest.json"
    whole = path.read_text()
    fields = json.loads(whole)
    path.write_text(json.dumps(fields | {"engine": fields["engine"] | change}))
    try:
        with pytest.raises(InputError, match="does not tell what the engine was built for"):
            read_facts(artifact)
    finally:
        path.write_text(whole)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tensorrt")
    build(tiny_checkpoint(directory / "model"), directory / "out", target="tensorrt:sm89")
    return directory / "out"
