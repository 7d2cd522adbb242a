"""What the shipped recipes write, carried to ONNX: the same integers, and logits within bounds."""

from pathlib import Path

import pytest

from coldpress import pressing, proving
from tests.tiny import tiny_checkpoint

CASES: dict[str, tuple[str, tuple[str, ...], set[str]]] = {
    "w4a16": ("w4a16", ("scheme.group_size=32",), {"bfloat16", "int4"}),
    "asymmetric-awq": (
        "w4a16-asym",
        ("scheme.group_size=32", "format=awq"),
        {"bfloat16", "int4"},
    ),
    "gptq": ("w4a16", ("scheme.group_size=32", "format=gptq"), {"bfloat16", "int4"}),
    "table-of-integers": ("smallest", (), {"bfloat16", "int4", "int8"}),
    "rounded-inputs": ("w8a8", (), {"bfloat16", "int8"}),
}


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied, in sizes that the recipes' groups divide."""
    directory = tmp_path_factory.mktemp("float") / "model"
    return tiny_checkpoint(directory, tied=True, hidden_size=128, intermediate=256)


@pytest.mark.parametrize("case", CASES)
def test_every_integer_survives(
    case: str, float_model: Path, text_file: Path, tmp_path: Path
) -> None:
    recipe, overrides, types = CASES[case]
    checkpoint, artifact = tmp_path / "checkpoint", tmp_path / "onnx"
    small = ("calibration.samples=4", "calibration.tokens=32")
    pressing.quantize(
        float_model,
        checkpoint,
        recipe=recipe,
        overrides=(*small, *overrides),
        calibration=str(text_file),
    )
    built = pressing.build(checkpoint, artifact, target="onnx")
    assert set(built["tensors_by_type"]) == types
    report = proving.verify(artifact, against=checkpoint)
    assert report.passed and set(report.counts) == {"equal"}
    assert report.logits is not None
    if case == "rounded-inputs":
        # One that moves by a whole step moves the next layer's: held to a divergence.
        assert report.logits.kld_bound is not None and built["notes"] == []
        assert report.logits.mean_kld <= report.logits.kld_bound / 100
    else:
        assert report.logits.bound is not None
        assert report.logits.max_difference <= report.logits.bound / 100
