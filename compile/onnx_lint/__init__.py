"""Reads anybody's ONNX decoder and says what will be refused, wrong or slow, and where.

Each rule stands for something that was measured or seen: docs/ONNX.md lists them.
"""

from compile.onnx_lint.facts import Facts
from compile.onnx_lint.files import file_rules
from compile.onnx_lint.findings import Finding, gathered
from compile.onnx_lint.graph import OnnxGraph
from compile.onnx_lint.reader import read_onnx
from compile.onnx_lint.steps import step_rules
from compile.onnx_lint.weights import weight_rules


def lint(graph: OnnxGraph) -> list[Finding]:
    """Everything that the rules find, the worst first."""
    facts = Facts(graph)
    return gathered([*file_rules(graph), *weight_rules(facts), *step_rules(facts)])


__all__ = ["Finding", "OnnxGraph", "lint", "read_onnx"]
