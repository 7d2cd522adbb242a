"""A GPTQ or AWQ checkpoint of ours goes where a compressed-tensors one goes."""

from pathlib import Path

import numpy as np
import pytest

import coldpress
from compile.open_model import open_model
from quant.format.tensor import QuantizedTensor
from tests.coldpress.conftest import Run
from tests.tiny import tiny_checkpoint

RTN = ("scales=search", "scheme.group_size=32")


@pytest.mark.parametrize("recipe", ["rtn-w4a16", "rtn-w4a16-asym"])
@pytest.mark.parametrize("name", ["gptq", "gptq_v2", "awq"])
def test_every_format_becomes_the_same_gguf(tmp_path: Path, name: str, recipe: str) -> None:
    model = tiny_checkpoint(tmp_path / "model", "qwen2", dtype="float16")
    for folder, kind in (("plain", "compressed-tensors"), ("other", name)):
        options = (*RTN, f"format={kind}")
        coldpress.quantize(model, tmp_path / folder, recipe=recipe, overrides=options)
        coldpress.build(tmp_path / folder, tmp_path / f"{folder}-gguf")
    report = coldpress.verify(tmp_path / "other-gguf", against=tmp_path / "other")
    assert report.passed
    assert coldpress.verify(tmp_path / "other").passed
    plain, other = (open_model(tmp_path / f"{f}-gguf").weights for f in ("plain", "other"))
    quantized = 0
    for tensor in plain.names():
        one, two = plain.load(tensor), other.load(tensor)
        if isinstance(one, QuantizedTensor):
            assert isinstance(two, QuantizedTensor)
            assert one.digest() == two.digest()
            one, two = one.dequantize(), two.dequantize()
            quantized += 1
        np.testing.assert_array_equal(one, two)
    assert quantized == 2 * 7


def test_the_plan_refuses_with_the_exit_code_of_wrong_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run_json: Run
) -> None:
    from coldpress.cli import run

    model = tiny_checkpoint(tmp_path / "model")
    args = ["plan", str(model), "--recipe", "rtn-w4a16", "--set", "format=awq"]
    planned = run_json(*args)
    assert any("float16" in note for note in planned["notes"])
    assert run([*args, "--set", "scheme.num_bits=8"]) == 2
    assert "set scheme.num_bits=4" in capsys.readouterr().err
