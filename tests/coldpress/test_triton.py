"""A Triton repository from an artifact, and its model.py run with a stand-in for Triton."""

import importlib.util
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from coldpress.cli import run
from coldpress.llm import LLM
from coldpress.pressing import build
from compile.manifest import check_files, read_manifest
from quant.format.errors import InputError
from quant.format.scheme import IntScheme, PerGroup
from tests.tiny import tiny_checkpoint

PROMPT = "The press stands in"


class Tensor:
    def __init__(self, name: str, values: Any) -> None:
        self.name, self.values = name, np.asarray(values)

    def as_numpy(self) -> Any:
        return self.values


class Response:
    def __init__(self, output_tensors: list[Tensor], error: Any = None) -> None:
        self.tensors = {tensor.name: tensor.values[0].decode() for tensor in output_tensors}
        self.error = error


class Sender:
    """Collects responses until the final one."""

    def __init__(self) -> None:
        self.responses: list[Response] = []
        self.done = threading.Event()
        self.cancelled = False

    def send(self, response: Response, flags: int) -> None:
        assert not self.done.is_set(), "a response after the final one"
        self.responses.append(response)
        if flags == 1:
            self.done.set()

    def is_cancelled(self) -> bool:
        return self.cancelled

    def text(self) -> str:
        assert self.done.wait(30)
        return "".join(response.tensors["text_output"] for response in self.responses)


class Request:
    def __init__(self, **inputs: Any) -> None:
        self.inputs = {name: Tensor(name, values) for name, values in inputs.items()}
        self.sender = Sender()

    def get_response_sender(self) -> Sender:
        return self.sender


def asked(text: str, **inputs: Any) -> Request:
    values = {name: np.array([value]) for name, value in inputs.items()}
    return Request(text_input=np.array([text.encode()], object), **values)


@pytest.fixture
def utils(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse, module.TritonError = Tensor, Response, str
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    module.get_input_tensor_by_name = lambda request, name: request.inputs.get(name)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, an ONNX artifact of it, and the repository around that."""
    directory = tmp_path_factory.mktemp("triton")
    tiny_checkpoint(directory / "model", scheme=IntScheme(4, True, PerGroup(32)))
    build(directory / "model", directory / "shop", target="onnx")
    build(directory / "shop", directory / "repository", target="triton")
    return directory


@pytest.fixture
def model(made: Path, utils: None) -> Iterator[Any]:
    """What Triton makes of model.py."""
    path = made / "repository" / "shop" / "1" / "model.py"
    spec = importlib.util.spec_from_file_location("triton_shop", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize({"model_name": "shop"})
    yield model
    model.finalize()


def test_the_repository_holds_the_artifact_and_the_bare_decoder(made: Path) -> None:
    repository = made / "repository"
    found = {path.relative_to(repository).as_posix() for path in repository.rglob("*.*")}
    assert found >= {
        "manifest.json",
        "shop/config.pbtxt",
        "shop/1/model.py",
        "shop/1/artifact/tokenizer.json",
        "shop/1/artifact/manifest.json",
        "shop_decoder/config.pbtxt",
        "shop_decoder/1/model.onnx",
        "shop_decoder/1/model.onnx.data",
    }
    manifest = read_manifest(repository)
    assert manifest.kind == "triton" and check_files(repository, manifest) == []
    artifact = repository / "shop" / "1" / "artifact"
    assert check_files(artifact, read_manifest(artifact)) == []


def test_requests_share_an_engine_and_answer_as_alone(model: Any, made: Path) -> None:
    prompts = [PROMPT, "In the evening", "We taste it"]
    with LLM(made / "shop") as alone:
        expected = [alone.generate(prompt, max_tokens=9)[0].text for prompt in prompts]
    requests = [asked(prompt, max_tokens=9) for prompt in prompts]
    model.execute(requests)
    assert [request.sender.text() for request in requests] == expected
    for request in requests:
        (response,) = request.sender.responses
        assert response.error is None and response.tensors["finish_reason"] in ("length", "stop")


def test_a_stream_comes_in_pieces(model: Any) -> None:
    whole, stream = (asked(PROMPT, max_tokens=9, stream=stream) for stream in (False, True))
    model.execute([whole, stream])
    assert stream.sender.text() == whole.sender.text()
    assert len(stream.sender.responses) > 2
    reasons = [response.tensors["finish_reason"] for response in stream.sender.responses]
    assert reasons == [""] * (len(reasons) - 1) + ["length"]


def test_stop_strings_and_seeds_are_read(model: Any) -> None:
    plain = asked(PROMPT, max_tokens=12)
    model.execute([plain])
    text = plain.sender.text()
    stopped = asked(PROMPT, max_tokens=12, stop=text[4:7].encode())
    drawn = [asked(PROMPT, max_tokens=8, temperature=1.0, seed=5) for _ in range(2)]
    model.execute([stopped, *drawn])
    assert stopped.sender.text() == text[: text.index(text[4:7])]
    assert stopped.sender.responses[-1].tensors["finish_reason"] == "stop"
    assert drawn[0].sender.text() == drawn[1].sender.text() != text


def test_a_chat_goes_through_the_template(model: Any, made: Path) -> None:
    request = asked("How do you know?", chat=True, max_tokens=6)
    model.execute([request])
    with LLM(made / "shop") as alone:
        message = {"role": "user", "content": "How do you know?"}
        assert request.sender.text() == alone.chat([message], max_tokens=6).text


def test_a_request_that_cannot_be_answered_fails_alone(model: Any) -> None:
    long, fine = asked("word " * 400), asked(PROMPT, max_tokens=2)
    model.execute([long, fine])
    assert long.sender.done.wait(30) and fine.sender.done.wait(30)
    assert "context" in long.sender.responses[0].error and fine.sender.responses[0].error is None


def test_a_cancelled_request_ends(model: Any) -> None:
    request = asked(PROMPT, max_tokens=200, stream=True)
    request.sender.cancelled = True
    model.execute([request])
    assert request.sender.done.wait(30)
    assert request.sender.responses[-1].tensors["finish_reason"] in ("abort", "length", "stop")


def test_a_name_can_be_given(made: Path, tmp_path: Path) -> None:
    build(made / "shop", tmp_path / "repository", target="triton:other-name")
    assert (tmp_path / "repository" / "other-name" / "config.pbtxt").is_file()
    with pytest.raises(InputError, match="no name for a model"):
        build(made / "shop", tmp_path / "again", target="triton:../up")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("option", [["--verify"], ["--gate", "kld<=0.1"]])
def test_a_repository_is_neither_verified_nor_gated(
    made: Path, tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["build", str(made / "shop"), "-o", str(tmp_path / "out"), "--target", "triton"]
    assert run([*args, *option]) == 2
    assert "a Triton repository packs a finished" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
