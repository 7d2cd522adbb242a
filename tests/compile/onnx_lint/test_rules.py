"""Each rule finds its graph, and is silent about the same graph as it should be."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from compile.onnx_lint import lint, read_onnx
from compile.to_onnx.build import build_model
from quant.format.scheme import ActivationScheme, IntScheme, PerChannel, PerGroup
from tests.compile.onnx_lint.graphs import (
    FLOAT,
    FLOAT16,
    IN,
    INT64,
    OUT,
    array,
    external,
    found,
    node,
    save,
    scales,
    tensor,
    value,
)
from tests.tiny import tiny_model

INT4, UINT4, INT8 = TensorProto.INT4, TensorProto.UINT4, TensorProto.INT8
FP8, FP4 = TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1
Case = tuple[list[Any], list[Any]]
"""Nodes and tensors; x [T, IN] goes in and y comes out."""


def save_case(path: Path, case: Case, **options: Any) -> Path:
    nodes, tensors = case
    return save(path, nodes, [value("x")], [value("y", shape=("T", OUT))], tensors, **options)


def dequantize(dtype: int = INT4, zero: int | None = None, **attributes: Any) -> Case:
    """w [IN, OUT] in groups of 32."""
    inputs = ["w", "s"] if zero is None else ["w", "s", "z"]
    options = {"axis": 0, "block_size": 32} | attributes
    tensors = [tensor("w", dtype, (IN, OUT)), scales()]
    if zero is not None:
        tensors.append(tensor("z", dtype, (2, OUT), fill=zero))
    return [node("DequantizeLinear", inputs, "wf", **options)], tensors


def product(case: Case, op: str = "MatMul", **attributes: Any) -> Case:
    nodes, tensors = case
    return [*nodes, node(op, ["x", "wf"], "y", **attributes)], tensors


def turned(op: str) -> Case:
    """w [OUT, IN], in groups along its rows."""
    tensors = [tensor("w", INT4, (OUT, IN)), array("s", np.ones((OUT, 2), np.float32))]
    nodes = [node("DequantizeLinear", ["w", "s"], "wd", axis=1, block_size=32)]
    if op == "Gemm":
        return [*nodes, node("Gemm", ["x", "wd"], "y", transB=1)], tensors
    nodes.append(node("Transpose", ["wd"], "wf"))
    return product((nodes, tensors))


def packed(**attributes: Any) -> Case:
    options = {"K": IN, "N": OUT, "bits": 4, "block_size": 32} | attributes
    tensors = [
        tensor("w", TensorProto.UINT8, (OUT, 2, 16)),
        array("s", np.ones(OUT * 2, np.float32)),
    ]
    nodes = [node("MatMulNBits", ["x", "w", "s"], "y", domain="com.microsoft", **options)]
    return nodes, tensors


def gathered(first: str) -> Case:
    """A quantized table that is looked up: the operation that comes first."""
    tensors = [tensor("w", INT8, (50, OUT)), array("s", np.ones(OUT, np.float32))]
    find = node("Cast", ["x"], "ids", to=INT64)
    if first == "DequantizeLinear":
        wide = node("DequantizeLinear", ["w", "s"], "wf", axis=1)
        return [find, wide, node("Gather", ["wf", "ids"], "y")], tensors
    rows = node("Gather", ["w", "ids"], "rows")
    return [find, rows, node("DequantizeLinear", ["rows", "s"], "y", axis=2)], tensors


def float8(op: str) -> Case:
    nodes = [node("Cast", ["x"], "x8", to=FP8)]
    if op == "Reshape":
        nodes.append(node("Reshape", ["x8", "shape"], "y8"))
    last = "y8" if op == "Reshape" else "x8"
    shape = array("shape", np.array([-1, OUT], np.int64))
    nodes.append(node("DequantizeLinear", [last, "one"], "y"))
    return nodes, [shape, array("one", np.array(1, np.float32))]


CASES: dict[str, tuple[Case, str | None]] = {
    "packed as it should be": (product(dequantize()), None),
    "gemm as it should be": (product(dequantize(), "Gemm"), None),
    "turned by Transpose": (turned("Transpose"), "L3 onnxruntime"),
    "turned by transB": (turned("Gemm"), "L3 onnxruntime"),
    "8 bits at level 0": (packed(bits=8), "L4 onnxruntime"),
    "uint4": (product(dequantize(UINT4)), "L5 tensorrt"),
    "zero points": (product(dequantize(zero=0x11)), "L5 tensorrt"),
    "zero points of 0": (product(dequantize(zero=0)), None),
    "int8 zero points": (product(dequantize(INT8, zero=3)), None),
    "dequantized, then gathered": (gathered("DequantizeLinear"), "L6 onnxruntime"),
    "gathered, then dequantized": (gathered("Gather"), "L6 tensorrt"),
    "FP8 through Reshape": (float8("Reshape"), "L7 tensorrt"),
    "FP8 as it should be": (float8("DequantizeLinear"), None),
    "groups of 512": (packed(K=512, block_size=512), "L10 onnxruntime+tensorrt"),
    "groups of 8": (product(dequantize(block_size=8)), "L10 onnxruntime+tensorrt"),
    "short last group": (packed(K=70), "L10 onnxruntime+tensorrt"),
    "NVFP4": (product(dequantize(FP4)), "L13 tensorrt"),
}


@pytest.mark.parametrize("case", CASES)
def test_rules_about_weights(case: str, tmp_path: Path) -> None:
    graph, rule = CASES[case]
    opsets = {"": 24, "com.microsoft": 1}
    findings = found(save_case(tmp_path / "m.onnx", graph, opsets=opsets))
    findings = {kind: one for kind, one in findings.items() if not kind.startswith("L14")}
    assert set(findings) == ({rule} if rule else set())
    for one in findings.values():
        assert len(one.nodes) == 1 and one.sentence and one.fix


def test_level_4_and_four_bits_are_fast(tmp_path: Path) -> None:
    for case in (packed(bits=8, accuracy_level=4), packed(bits=4)):
        findings = found(save_case(tmp_path / "m.onnx", case, opsets={"": 24, "com.microsoft": 1}))
        assert set(findings) == {"L14 tensorrt"}


def attention(dtype: int = FLOAT16, **attributes: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Nodes, inputs and outputs of one attention over a cache that is an input."""
    names = ["q", "cache", "cache", "mask", "", "", "lengths"]
    if not attributes.pop("lengths", False):
        names = names[:4]
    inputs = [value(name, dtype, ("B", 4, "S", 16)) for name in ("q", "cache")]
    inputs.append(value("mask", TensorProto.BOOL, ("T", "S")))
    if "lengths" in names:
        inputs.append(value("lengths", INT64, ("B",)))
    nodes = [node("Attention", names, "y", **attributes)]
    return nodes, inputs, [value("y", dtype, ("B", 4, "T", 16))]


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        ({}, set()),
        ({"dtype": FLOAT}, {"L8 tensorrt"}),
        ({"is_causal": 1}, {"L2 tensorrt"}),
        ({"lengths": True}, {"L1 tensorrt"}),
    ],
)
def test_rules_about_attention(options: dict[str, Any], rules: set[str], tmp_path: Path) -> None:
    assert set(found(save(tmp_path / "m.onnx", *attention(**options)))) == rules


def test_a_whole_cache_is_walked(tmp_path: Path) -> None:
    nodes, inputs, outputs = attention(lengths=True)
    write = node("TensorScatter", ["cache", "new", "places"], "written")
    nodes[0].input[1] = "written"
    inputs += [value("new", FLOAT16, ("B", 4, "T", 16)), value("places", INT64, ("B",))]
    kept = [*outputs, value("written", FLOAT16, ("B", 4, "S", 16))]
    findings = found(save(tmp_path / "m.onnx", [write, *nodes], inputs, kept))
    assert set(findings) == {"L1 tensorrt", "L11 onnxruntime", "L12 onnxruntime"}
    assert findings["L11 onnxruntime"].level == "note"


def test_an_input_that_nothing_reads(tmp_path: Path) -> None:
    nodes = [node("Neg", ["x"], "y")]
    path = save(tmp_path / "m.onnx", nodes, [value("x"), value("lengths", INT64)], [value("y")])
    (finding,) = lint(read_onnx(path))
    assert (finding.rule, finding.level, finding.nodes) == ("L1", "wrong", ("lengths",))


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "DequantizeLinear", "Cast"])
def test_a_head_of_every_row(kind: str, pruned: bool, tmp_path: Path) -> None:
    vocabulary = 2000
    weight = np.zeros((IN, vocabulary), np.float32)
    nodes = [node("RMSNormalization", ["x", "norm"], "normed", axis=-1)]
    tensors = [array("norm", np.ones(IN, np.float32)), array("w", weight)]
    inputs = [value("x")]
    last = "normed"
    if pruned:
        nodes.append(node("Gather", ["normed", "rows"], "picked", axis=0))
        inputs.append(value("rows", INT64, ("R",)))
        last = "picked"
    if kind == "Gemm":
        tensors[1] = array("w", weight.T.copy())
        nodes.append(node("Gemm", [last, "w"], "plain", transB=1))
    elif kind == "Cast":
        tensors[1] = array("w", weight.astype(np.float16))
        nodes.append(node("Cast", ["w"], "wf", to=FLOAT))
        nodes.append(node("MatMul", [last, "wf"], "plain"))
    elif kind == "DequantizeLinear":
        tensors[1:] = [tensor("w", INT8, weight.shape), array("s", np.ones(vocabulary, np.float32))]
        nodes.append(node("DequantizeLinear", ["w", "s"], "wf", axis=1))
        nodes.append(node("MatMul", [last, "wf"], "plain"))
    else:
        nodes.append(node("MatMul", [last, "w"], "plain"))
    nodes.append(node("Tanh", ["plain"], "y"))
    out = [value("y", shape=("R", vocabulary))]
    findings = found(save(tmp_path / "m.onnx", nodes, inputs, out, tensors))
    assert set(findings) == (set() if pruned else {"L15 onnxruntime+tensorrt"})


def test_versions_that_are_too_new(tmp_path: Path) -> None:
    case: Case = ([node("Neg", ["x"], "y")], [])
    path = save_case(tmp_path / "m.onnx", case, opsets={"": 27}, ir_version=14)
    sentences = [finding.sentence for finding in lint(read_onnx(path))]
    assert len(sentences) == 2 and "opset 27" in sentences[0] and "IR version 14" in sentences[1]


@pytest.mark.parametrize(
    ("domain", "op", "targets"),
    [
        ("com.microsoft", "GroupQueryAttention", ("tensorrt",)),
        ("com.example", "Anything", ("onnxruntime", "tensorrt")),
        ("", "MatMulInteger", ("tensorrt",)),
        ("ai.onnx", "Neg", None),
        ("local", "Mine", None),
    ],
)
def test_operations_that_are_not_everybodys(
    domain: str, op: str, targets: tuple[str, ...] | None, tmp_path: Path
) -> None:
    mine = helper.make_function("local", "Mine", ["a"], ["b"], [node("Neg", ["a"], "b")], [])
    opsets = {"": 24, "com.microsoft": 1, "com.example": 1, "local": 1}
    case: Case = ([node(op, ["x"], "y", domain=domain)], [])
    path = save_case(tmp_path / "m.onnx", case, opsets=opsets, functions=[mine])
    findings = lint(read_onnx(path))
    assert [finding.targets for finding in findings] == ([targets] if targets else [])
    assert {finding.rule for finding in findings} <= {"L14"}


PLACES: dict[str, tuple[str, dict[str, int], str]] = {
    "above": ("../secret", {}, r"outside of the graph's directory \(\.\.\)"),
    "hidden above": ("sub/../../secret", {}, r"outside of the graph's directory \(\.\.\)"),
    "absolute": ("/etc/passwd", {}, "absolute path"),
    "a drive": ("C:\\weights", {}, "absolute path"),
    "nothing": ("", {}, "absolute path"),
    "symbolic link": ("link", {}, "symbolic link"),
    "linked folder": ("folder/data", {}, "symbolic link"),
    "hard link": ("second", {}, "a second name elsewhere"),
    "no file": ("absent", {}, "absent, is missing"),
    "a folder": ("sub", {}, "no plain file"),
    "beyond the end": ("data", {"offset": 4096, "length": 64}, "beyond the end"),
    "before the start": ("data", {"offset": -1, "length": 64}, "beyond the end"),
    "longer than the file": ("data", {"offset": 0, "length": 1 << 60}, "beyond the end"),
    "without a length": ("data", {"offset": 64}, "beyond the end"),
}


@pytest.mark.parametrize("case", PLACES)
def test_weights_that_lie_elsewhere(case: str, tmp_path: Path) -> None:
    location, place, problem = PLACES[case]
    home = tmp_path / "model"
    (home / "sub").mkdir(parents=True)
    (home / "data").write_bytes(bytes(64))
    (tmp_path / "secret").write_bytes(bytes(64))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "data").write_bytes(bytes(64))
    (home / "link").symlink_to(tmp_path / "secret")
    (home / "folder").symlink_to(tmp_path / "outside")
    os.link(tmp_path / "secret", home / "second")
    nodes = [node("Gemm", ["x", "w"], "y")]
    tensors = [external("w", location, **place)]
    path = save(home / "m.onnx", nodes, [value("x")], [value("y")], tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.open", None)  # a linter opens the graph alone
        (finding,) = lint(read_onnx(path))
    assert (finding.rule, finding.level, finding.nodes) == ("L16", "refused", ("w",))
    assert re.search(problem, finding.sentence)


def test_weights_beside_the_graph_are_fine(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(64))
    nodes = [node("Gemm", ["x", "w"], "y")]
    tensors = [external("w", "data", offset=0, length=64)]
    path = save(tmp_path / "m.onnx", nodes, [value("x")], [value("y")], tensors)
    assert lint(read_onnx(path)) == []


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (None, {"L8 tensorrt"}),
        (IntScheme(4, True, PerGroup(32)), {"L8 tensorrt"}),
        (IntScheme(4, False, PerGroup(32)), {"L5 tensorrt", "L8 tensorrt"}),
        (
            IntScheme(8, True, PerChannel(), ActivationScheme("int8")),
            {"L8 tensorrt", "L14 tensorrt"},
        ),
    ],
)
def test_our_own_graphs_are_fast_in_onnx_runtime(
    scheme: IntScheme | None, expected: set[str], tmp_path: Path
) -> None:
    """What TensorRT is to be told, its own builder does."""
    build_model(tiny_model(scheme=scheme), tmp_path, version="0", round_inputs=True)
    assert set(found(tmp_path / "model.onnx")) == expected
