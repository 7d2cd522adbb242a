"""JUnit XML, which every CI system can show: what gates and modules came to, case by case."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.gates import Verdict
from quant.format.errors import CheckFailedError, InputError
from quant.format.staging import write_file_atomically

_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 (section 2.2) has no way to write."""


@dataclass(frozen=True)
class Case:
    """One testcase. outcome None: passed; otherwise `message` says why not. output: what was
    measured, whatever came of it."""

    group: str
    name: str
    outcome: str | None = None
    message: str = ""
    output: str = ""


@contextmanager
def junit_file(path: Path | None, command: str, output: Path | None = None) -> Iterator[list[Case]]:
    """Cases to add to; written to `path` when the block ends, also when it ends with an error.

    An error that no case has told becomes one. Without a path, nothing is written. Raises
    InputError, before the block begins, for a path that cannot be a file, or that lies in the
    directory `output`, whose files the manifest lists.
    """
    if path is not None and path.is_dir():
        raise InputError(f"{path}: is a directory; name a file for --junit")
    if path is not None and output is not None and path.resolve().is_relative_to(output.resolve()):
        raise InputError(f"{path}: lies in the artifact {output}; name a file outside of it")
    cases: list[Case] = []
    try:
        yield cases
    except Exception as error:
        if not any(case.outcome in ("failure", "error") for case in cases):
            outcome = "failure" if isinstance(error, CheckFailedError) else "error"
            cases.append(Case("coldpress.command", command, outcome, str(error)))
        _write(path, command, cases)
        raise
    _write(path, command, cases)


def gate_cases(verdicts: Sequence[Verdict]) -> list[Case]:
    """One case per gate; a gate that is not met, or undecided, fails."""
    return [
        Case(
            "coldpress.gates",
            str(verdict.gate),
            None if verdict.holds else "failure",
            "" if verdict.holds else str(verdict),
            str(verdict),
        )
        for verdict in verdicts
    ]


def module_cases(modules: Sequence[Mapping[str, Any]]) -> list[Case]:
    """One case per module that is not as asked.

    It is skipped, not failed: the recipe allowed it, or the command would have ended with an error.
    """
    return [
        Case("coldpress.modules", module["module"], "skipped", module["state"])
        for module in modules
        if module["state"] != "as asked"
    ]


def junit_bytes(command: str, cases: Sequence[Case]) -> bytes:
    """UTF-8 XML: one suite named after the command."""
    outcomes = [case.outcome for case in cases]
    suite = ElementTree.Element(
        "testsuite",
        name=f"coldpress {command}",
        tests=str(len(cases)),
        failures=str(outcomes.count("failure")),
        errors=str(outcomes.count("error")),
        skipped=str(outcomes.count("skipped")),
    )
    for case in cases:
        element = ElementTree.SubElement(
            suite, "testcase", classname=_legal(case.group), name=_legal(case.name)
        )
        if case.outcome is not None:
            ElementTree.SubElement(element, case.outcome, message=_legal(case.message))
        if case.output:
            ElementTree.SubElement(element, "system-out").text = _legal(case.output)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _write(path: Path | None, command: str, cases: Sequence[Case]) -> None:
    if path is not None:
        write_file_atomically(path, junit_bytes(command, cases))


def _legal(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
