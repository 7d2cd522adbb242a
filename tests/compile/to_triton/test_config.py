"""config.pbtxt against the public description of a model's configuration."""

import importlib.util
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from compile.onnx_contract import GRAPH_FILE
from compile.to_onnx.build import build_model
from compile.to_triton.config import TritonModel, TritonTensor
from compile.to_triton.repository import decoder_model, text_model
from tests.tiny import tiny_model


@cache
def public_proto() -> ModuleType:
    """model_config.proto as NVIDIA's client compiled it; its package would import grpc."""
    pytest.importorskip("tritonclient", reason="the extra 'triton-proto' is not installed")
    package = importlib.util.find_spec("tritonclient")
    assert package is not None and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        # Of code that an older protoc wrote than the library that reads it.
        warnings.simplefilter("ignore", UserWarning)
        spec.loader.exec_module(module)
    return module


def parsed(model: TritonModel) -> Any:
    """The ModelConfig; unknown fields, wrong types and unknown enums are errors."""
    proto = public_proto()
    from google.protobuf import text_format

    return text_format.Parse(model.to_pbtxt(), proto.ModelConfig())


def test_the_text_model_is_a_decoupled_python_model() -> None:
    config = parsed(text_model("shop", on_gpu=False))
    proto = public_proto()
    assert (config.name, config.backend, config.platform) == ("shop", "python", "")
    assert config.max_batch_size == 0
    assert config.model_transaction_policy.decoupled
    assert [(i.name, i.optional) for i in config.input][:2] == [
        ("text_input", False),
        ("chat", True),
    ]
    assert config.input[0].data_type == proto.TYPE_STRING and list(config.input[0].dims) == [1]
    assert [o.name for o in config.output] == ["text_output", "finish_reason"]
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (proto.ModelInstanceGroup.KIND_CPU, 1, [])
    assert config.version_policy.latest.num_versions == 1


def test_a_model_for_a_gpu_says_which() -> None:
    (group,) = parsed(text_model("shop", on_gpu=True)).instance_group
    assert group.kind == public_proto().ModelInstanceGroup.KIND_GPU and list(group.gpus) == [0]


@pytest.mark.parametrize("plan", [False, True])
def test_the_decoder_has_the_ports_of_its_graph(tmp_path: Path, plan: bool) -> None:
    build_model(tiny_model(), tmp_path, version="test")
    config = parsed(decoder_model("shop_decoder", tmp_path / GRAPH_FILE, plan))
    proto = public_proto()
    assert (config.backend, config.platform) == (
        ("", "tensorrt_plan") if plan else ("onnxruntime", "")
    )
    inputs = {port.name: (port.data_type, list(port.dims)) for port in config.input}
    assert inputs["token_ids"] == (proto.TYPE_INT64, [-1])
    assert inputs["page_table"] == (proto.TYPE_INT64, [-1, -1])
    assert inputs["pool_k.1"] == (proto.TYPE_FP32, [-1, -1, 2, 16])
    outputs = {port.name: (port.data_type, list(port.dims)) for port in config.output}
    assert outputs["logits"] == (proto.TYPE_FP32, [-1, 384])
    assert not config.model_transaction_policy.decoupled


def test_words_are_quoted() -> None:
    said = {"path": 'a "quoted"\\ näme\n', "other": ""}
    tensor = TritonTensor("x", "float16", (2, -1))
    model = TritonModel("m", [tensor], [tensor], "KIND_CPU", backend="python", parameters=said)
    config = parsed(model)
    assert {key: value.string_value for key, value in config.parameters.items()} == said
    assert list(config.output[0].dims) == [2, -1]
