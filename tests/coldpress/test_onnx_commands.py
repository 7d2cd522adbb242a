"""ONNX through the command line: build, verify, inspect, plan, run and serve."""

import shutil
from pathlib import Path
from typing import Any

import openai
import pytest

from coldpress.cli import run
from coldpress.demo import serving
from compile.from_onnx import open_onnx
from compile.manifest import check_files, read_manifest
from tests.coldpress.conftest import Run
from tests.compile.onnx_lint.graphs import external, node, save, value
from tests.runtime.executors.onnx_models import INT4
from tests.tiny import tiny_checkpoint

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int4 checkpoint."""
    return tiny_checkpoint(tmp_path_factory.mktemp("int4") / "model", "qwen3", scheme=INT4)


@pytest.fixture(scope="module")
def artifact(integers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as ONNX."""
    directory = tmp_path_factory.mktemp("onnx") / "artifact"
    args = ["build", str(integers), "-o", str(directory), "--target", "onnx:int4"]
    assert run(args) == 0
    return directory


def test_an_artifact_is_complete_and_tells_its_story(integers: Path, artifact: Path) -> None:
    manifest = read_manifest(artifact)
    assert manifest.kind == "onnx" and check_files(artifact, manifest) == []
    assert {"model.onnx", "model.onnx.data", "config.json", "tokenizer.json"} <= set(manifest.files)
    assert manifest.parents[0]["name"] == integers.name
    assert manifest.modules is not None
    assert sorted(set(manifest.modules.values())) == ["bfloat16", "int4"]


def test_verify_finds_every_integer_and_the_same_logits(
    integers: Path, artifact: Path, run_json: Run
) -> None:
    report = run_json("verify", artifact, "--against", integers)
    assert report["passed"] and set(report["counts"]) == {"equal"}
    logits = report["logits"]
    assert logits["bound"] is not None and logits["max_difference"] <= logits["bound"] / 100


def test_integers_pass_through_gguf_too(integers: Path, tmp_path: Path, run_json: Run) -> None:
    gguf, onnx = tmp_path / "gguf", tmp_path / "onnx"
    assert run(["build", str(integers), "-o", str(gguf), "--target", "gguf"]) == 0
    assert run(["build", str(gguf), "-o", str(onnx), "--target", "onnx:int4"]) == 0
    for reference in (gguf, integers):
        report = run_json("verify", onnx, "--against", reference)
        assert report["passed"] and set(report["counts"]) == {"equal"}
    assert run(["build", str(gguf / "model.gguf"), "-o", str(onnx), "--target", "onnx"]) == 2
    assert run(["build", str(onnx), "-o", str(tmp_path / "again"), "--target", "onnx"]) == 2


def test_experts_are_verified_against_the_oracle(tmp_path: Path, run_json: Run) -> None:
    """Which the native kernels do not run."""
    checkpoint, built = tmp_path / "model", tmp_path / "onnx"
    tiny_checkpoint(checkpoint, "qwen3_moe")
    assert run(["build", str(checkpoint), "-o", str(built), "--target", "onnx:fp32"]) == 0
    report = run_json("verify", built, "--against", checkpoint)
    assert report["passed"] and set(report["counts"]) == {"equal"}
    assert report["logits"]["max_difference"] <= report["logits"]["bound"] / 100


def test_verify_finds_a_changed_integer(
    integers: Path, artifact: Path, tmp_path: Path, run_json: Run
) -> None:
    copy = shutil.copytree(artifact, tmp_path / "copy")
    (copy / "manifest.json").unlink()
    name = "model.layers.0.self_attn.k_proj.weight"
    tensors = open_onnx(copy / "model.onnx").graph.tensors
    with (copy / "model.onnx.data").open("r+b") as data:
        data.seek(next(tensor.offset for tensor in tensors if tensor.name == name))
        (first,) = data.read(1)
        data.seek(-1, 1)
        data.write(bytes([first ^ 1]))
    report = run_json("verify", copy, "--against", integers, "--no-logits", code=1)
    assert report["failures"] == [f"tensor {name} holds other numbers"]


def test_plan_knows_the_size_and_inspect_the_schemes(
    integers: Path, artifact: Path, run_json: Run
) -> None:
    plan = run_json("plan", integers, "--target", "onnx")
    found = run_json("inspect", artifact)
    assert plan["bytes"] == found["bytes"]
    assert run_json("inspect", artifact / "model.onnx")["bytes"] == found["bytes"]
    assert found["kind"] == "onnx" and found["tensors_by_scheme"]["int4-sym-g32"] > 7
    assert {row["type"] for row in plan["tensors"]} == {"bfloat16", "int4"}


def test_it_answers_and_on_our_own_kernels_as_the_checkpoint_does(
    integers: Path, artifact: Path, run_json: Run
) -> None:
    """ONNX Runtime rounds inputs while it serves: a model of random numbers may say otherwise."""
    asked = ["the press", "--max-tokens", 4, "--raw"]
    assert run_json("run", artifact, *asked)["completion_tokens"] in range(1, 5)
    native = run_json("run", artifact, *asked, "--backend", "cpu")
    assert native["text"] == run_json("run", integers, *asked)["text"]


def test_it_is_served(artifact: Path) -> None:
    asked: list[Any] = [{"role": "user", "content": "hello"}]
    with (
        serving(artifact) as ready,
        openai.OpenAI(base_url=f"{ready['url']}/v1", api_key="none", max_retries=0) as client,
    ):
        answer = client.chat.completions.create(model="artifact", messages=asked, max_tokens=3)
    assert answer.usage is not None and answer.usage.completion_tokens >= 1


def test_floats_are_rounded_where_integers_are_asked_for(
    tiny: Path, tmp_path: Path, run_json: Run
) -> None:
    built = run_json("build", tiny, "-o", tmp_path / "out", "--target", "onnx:int4")
    assert any("rounded anew from bfloat16 to int4" in note for note in built["notes"])
    report = run_json("verify", tmp_path / "out", "--against", tiny)
    assert report["passed"] and report["counts"]["requantized"] > 7
    assert report["logits"]["bound"] is None


def test_inspect_says_what_readers_will_make_of_a_graph(
    artifact: Path, run_json: Run, capsys: Capture
) -> None:
    found = run_json("inspect", artifact)["findings"]
    assert [(f["rule"], f["targets"], f["count"]) for f in found] == [("L8", ["tensorrt"], 2)]
    assert run(["inspect", str(artifact)]) == 0
    assert "no kernel for" in capsys.readouterr().out


def test_inspect_reads_graphs_of_other_makers(
    tmp_path: Path, run_json: Run, capsys: Capture
) -> None:
    nodes = [node("Magic", ["x"], "h", domain="com.example"), node("MatMul", ["h", "w"], "y")]
    tensors = [external("w", "../weights", offset=0, length=64)]
    path = save(tmp_path / "other.onnx", nodes, [value("x")], [value("y")], tensors)
    report = run_json("inspect", path)
    assert (report["kind"], report["producer"]) == ("onnx graph", "someone")
    assert report["nodes"] == {"Magic": 1, "MatMul": 1}
    assert report["weights"] == {"float32_bytes": 64}
    rules = {f["rule"]: (f["level"], f["nodes"]) for f in report["findings"]}
    assert rules == {"L14": ("refused", ["h"]), "L16": ("refused", ["w"])}
    assert run(["inspect", str(path)]) == 0
    assert "L16" in capsys.readouterr().out
    path.write_bytes(b"nothing")
    assert run(["inspect", str(path)]) == 2
    assert "is not an ONNX model, or is damaged" in capsys.readouterr().err
