"""What lies where in a model repository, for each kind of artifact."""

import json
from pathlib import Path

import pytest

from compile.engine_file import ENGINE_FILE
from compile.model import Model
from compile.open_model import open_model
from compile.to_gguf import build_gguf
from compile.to_triton.repository import write_repository
from tests.runtime.executors.tensorrt_host import artifact_of
from tests.tiny import tiny_checkpoint, tiny_model


def contents(directory: Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def with_builder(model: Model, builder: str) -> Model:
    """The same artifact, as if that package had built its engine."""
    assert model.directory is not None
    manifest = model.directory / "manifest.json"
    fields = json.loads(manifest.read_text())
    fields["engine"]["builder"] = builder
    manifest.write_text(json.dumps(fields))
    return open_model(model.directory)


def test_a_checkpoint_and_a_bare_file_have_no_decoder(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    names = write_repository(open_model(checkpoint), tmp_path / "one", "shop")
    assert names == ["shop"]
    found = contents(tmp_path / "one" / "shop" / "1" / "artifact")
    assert found == contents(checkpoint)
    build_gguf(checkpoint, tmp_path / "small.gguf")
    assert write_repository(open_model(tmp_path / "small.gguf"), tmp_path / "two", "shop") == names
    assert set(contents(tmp_path / "two")) == {
        "shop/config.pbtxt",
        "shop/1/model.py",
        "shop/1/artifact/small.gguf",
    }


@pytest.mark.parametrize("builder", ["tensorrt_rtx", "tensorrt"])
def test_only_the_full_tensorrt_makes_plans(tmp_path: Path, builder: str) -> None:
    model = with_builder(artifact_of(tmp_path / "artifact", tiny_model()), builder)
    assert model.directory is not None
    write_repository(model, tmp_path / "repository", "shop")
    found = contents(tmp_path / "repository")
    assert b"KIND_GPU" in found["shop/config.pbtxt"]
    engine, graph = ((model.directory / n).read_bytes() for n in (ENGINE_FILE, "model.onnx"))
    decoder = {name: data for name, data in found.items() if name.startswith("shop_decoder/1/")}
    config = found["shop_decoder/config.pbtxt"].decode()
    if builder == "tensorrt":
        assert decoder == {"shop_decoder/1/model.plan": engine}
        assert 'platform: "tensorrt_plan"' in config and "TYPE_FP16" in config
    else:
        assert decoder["shop_decoder/1/model.onnx"] == graph and len(decoder) == 2
        assert 'backend: "onnxruntime"' in config and "KIND_CPU" in config
