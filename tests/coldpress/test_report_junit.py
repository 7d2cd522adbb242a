"""JUnit files: valid XML that says what the exit code says."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress.cli import run
from coldpress.gates import judge_gates, parse_gates
from coldpress.junit import Case, gate_cases, junit_bytes, junit_file, module_cases
from quant.format.errors import CheckFailedError, InputError
from tests.coldpress.conftest import Run

LEGAL = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff")


def suite_of(path: Path) -> ElementTree.Element:
    root = ElementTree.fromstring(path.read_bytes())
    assert root.tag == "testsuites" and len(root) == 1
    suite = root[0]
    counted = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    assert int(suite.attrib["tests"]) == len(suite.findall("testcase"))
    for name, outcome in counted.items():
        assert int(suite.attrib[name]) == len(suite.findall(f"testcase/{outcome}"))
    return suite


def test_eval_writes_a_case_per_gate_also_when_one_fails(
    tiny: Path, text_file: Path, tmp_path: Path, run_json: Run
) -> None:
    path = tmp_path / "gates.xml"
    args = ["eval", tiny, "--text", text_file, "--window", 64, "--junit", path]
    gates = ["--gate", "perplexity<1", "--gate", "bytes>10"]
    figures = run_json(*args, *gates, code=1)
    suite = suite_of(path)
    assert suite.attrib["name"] == "coldpress eval" and suite.attrib["failures"] == "1"
    failed, passed = suite
    assert failed.attrib["name"] == "perplexity<1" and passed.attrib["name"] == "bytes>10"
    low, high = figures["intervals"]["perplexity"]
    sentence = (
        f"perplexity<1 (measured {figures['perplexity']:.6g}, 95% interval {low:.6g} to {high:.6g})"
    )
    assert failed[0].attrib["message"] == failed[1].text == sentence
    assert [part.tag for part in passed] == ["system-out"]
    assert passed[0].text == f"bytes>10 (measured {figures['bytes']})"
    run_json(*args, "--gate", "perplexity>1")
    assert suite_of(path).attrib["failures"] == "0"


def test_build_writes_its_gates(tiny: Path, text_file: Path, tmp_path: Path) -> None:
    path, output = tmp_path / "build.xml", tmp_path / "artifact"
    args = ["build", tiny, "-o", output, "--target", "gguf:q8_0", "--gate-text", text_file]
    gates = ["--gate", "kld<=0", "--gate", "top1>=0.5", "--junit", path]
    assert run([*map(str, args), *map(str, gates)]) == 1
    names = [case.attrib["name"] for case in suite_of(path).findall("testcase")]
    assert names == ["kld<=0", "top1>=0.5"]
    assert suite_of(path).attrib["failures"] == "1"


def test_a_quantized_model_is_reported_as_it_was_quantized(
    tiny: Path, text_file: Path, tmp_path: Path, run_json: Run
) -> None:
    path, output, page = (tmp_path / name for name in ("q.xml", "int4", "page.html"))
    outcome = run_json(
        *("quantize", tiny, "-o", output, "--recipe", "w4a16", "--calibration", text_file),
        *("--set", "calibration.samples=2", "--set", "calibration.tokens=32"),
        *("--set", "scheme.group_size=32", "--junit", path),
        *("--gate-text", text_file, "--gate", "bytes>10", "--gate", "kld<=0"),
        code=1,
    )
    cases = suite_of(path).findall("testcase")
    others = [m["module"] for m in outcome["modules"] if m["state"] != "as asked"]
    assert [case.attrib["name"] for case in cases] == [*others, "bytes>10", "kld<=0"]
    assert suite_of(path).attrib["failures"] == "1"
    assert run_json("report", output, "-o", page)["not_as_asked"] == {"int4": len(others)}
    text = page.read_text(encoding="utf-8")
    assert f"{outcome['evaluation']['kld']['p99']:.4g}" in text
    for module in outcome["modules"]:
        assert f"<td>{module['module']}</td>" in text
        if module["state"] == "as asked":
            assert f"{module['module']}: {module['output_error']:.4g}" in text


def test_an_error_is_a_case_too(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    args = ["eval", str(tmp_path), "--text", str(tmp_path / "none.txt"), "--junit", str(path)]
    assert run(args) == 2
    suite = suite_of(path)
    assert suite.attrib["errors"] == "1" and "none.txt" in suite[0][0].attrib["message"]


def test_a_module_that_fails_the_command_fails_a_case(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    with pytest.raises(CheckFailedError), junit_file(path, "quantize"):
        raise CheckFailedError("model.layers.0 fell back")
    suite = suite_of(path)
    assert suite.attrib["failures"] == "1"
    assert suite[0][0].attrib["message"] == "model.layers.0 fell back"


def test_modules_that_the_recipe_allowed_to_differ_are_skipped() -> None:
    modules = [
        {"module": "a", "state": "as asked"},
        {"module": "b", "state": "kept in 16 bit: too small"},
    ]
    assert module_cases(modules) == [
        Case("coldpress.modules", "b", "skipped", "kept in 16 bit: too small")
    ]


def test_a_figure_that_is_no_number_fails_its_gate() -> None:
    (case,) = gate_cases(judge_gates(parse_gates(["perplexity>1"]), {"perplexity": None}))
    assert case.outcome == "failure" and "not a number" in case.message


@pytest.mark.parametrize("inside", ["", "junit.xml"])
def test_a_junit_file_lies_outside_the_artifact(inside: str, tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    with pytest.raises(InputError), junit_file(output / inside, "build", output):
        pytest.fail("the work began")
    assert not output.exists()


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    with junit_file(None, "eval") as cases:
        cases.append(Case("a", "b"))
    with pytest.raises(InputError), junit_file(tmp_path, "eval"):
        pytest.fail("the work began")


@given(st.text(st.characters()), st.text(LEGAL))
def test_any_text_makes_valid_xml(wild: str, legal: str) -> None:
    cases = [Case("g", wild, "failure", wild), Case("g", legal, "skipped", legal)]
    suite = ElementTree.fromstring(junit_bytes("eval", cases))[0]
    assert len(suite[0].attrib["name"]) == len(wild)
    assert suite[1].attrib["name"] == suite[1][0].attrib["message"] == legal
