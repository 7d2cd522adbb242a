"""The packages that serve GPTQ and AWQ files take ours for the numbers that we wrote.

They are those of the extra `readers`, and run on a CPU with their kernels in plain torch; what they
choose by themselves there packs the weights anew, and rounds more. Each multiplies level and scale
in float16, where we say float32; the product of an integer below 2**5 and a float16 has at most 16
significant bits, so that float32 holds it exactly and both round the same number once: weights
agree bit for bit. A linear that is given the identity answers with its weight, whatever its kernel,
since sums of one number and zeros round nothing.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quant.format.checkpoint import open_checkpoint
from quant.format.tensor import QuantizedTensor
from quant.recipe import load_recipe
from quant.run import quantize_checkpoint
from tests.tiny import tiny_checkpoint

WHY = "the extra readers is not installed"
EVERY = [(name, zeros) for name in ("gptq", "gptq_v2", "awq") for zeros in ("sym", "asym")]
TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6]])

pytestmark = pytest.mark.filterwarnings("ignore")  # packages of others warn as they like


@pytest.fixture(scope="module")
def pressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float16 model with biases, in every format: scales are the same numbers in all."""
    root = tmp_path_factory.mktemp("readers")
    model = tiny_checkpoint(root / "model", "qwen2", dtype="float16")
    for name, zeros in EVERY:
        options = [f"format={name}", "scheme.group_size=32", "scales=search", "balance=null"]
        recipe = load_recipe("rtn-w4a16" + "-asym" * (zeros == "asym"), options)
        quantize_checkpoint(model, root / f"{name}-{zeros}", recipe, "self")
    return root


def integers(directory: Path) -> dict[str, QuantizedTensor]:
    source = open_checkpoint(directory)
    values = {name.removesuffix(".weight"): source.load(name) for name in source.names()}
    return {name: v for name, v in values.items() if isinstance(v, QuantizedTensor)}


def dequantized_model(directory: Path) -> Any:
    """transformers' own modules over float16 weights that we dequantized."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    source, state = open_checkpoint(directory), {}
    for name in source.names():
        value = source.load(name)
        floats = value.dequantize() if isinstance(value, QuantizedTensor) else value
        state[name] = torch.from_numpy(np.asarray(floats, np.float32)).half()
    model.load_state_dict(state)
    return model.eval()


def assert_worth_the_same(model: Any, directory: Path) -> None:
    """Weights of all linears bit for bit, and logits like those of the same weights in float16.

    Kernels sum in other orders. Each of the 2 x 7 linears rounds its outputs to float16 once, in
    both models, and so do about as many elementwise steps; all are of the size of 1, as logits are
    here: 2 x 28 roundings of 2**-11 each, if none of them ever makes up for another.
    """
    modules, ours = dict(model.named_modules()), integers(directory)
    assert len(ours) == 2 * 7
    with torch.no_grad():
        for name, tensor in ours.items():
            linear = modules[name]
            assert not isinstance(linear, torch.nn.Linear), "it must be one that reads the words"
            expected = torch.from_numpy(tensor.dequantize()).half().T
            if linear.bias is not None:
                expected = expected + linear.bias
            identity = torch.eye(tensor.shape[1], dtype=torch.float16)
            assert torch.equal(linear(identity[None])[0], expected), name
        theirs = model(TOKENS).logits.float()
        plain = dequantized_model(directory)(TOKENS).logits.float()
    assert float(plain.std()) > 0.5
    assert float((theirs - plain).abs().max()) < 2 * 28 * 2.0**-11


@pytest.mark.parametrize(("name", "zeros"), EVERY)
def test_transformers(pressed: Path, name: str, zeros: str) -> None:
    """Through optimum and GPTQModel's kernels, as it reads GPTQ and AWQ files today."""
    pytest.importorskip("gptqmodel", reason=WHY)
    pytest.importorskip("optimum", reason=WHY)
    from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

    directory = pressed / f"{name}-{zeros}"
    kernel = AwqConfig(backend="torch_awq") if name == "awq" else GPTQConfig(4, backend="torch")
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float16, quantization_config=kernel
    )
    assert_worth_the_same(model.eval(), directory)


@pytest.mark.parametrize(("name", "zeros"), [row for row in EVERY if row != ("gptq", "asym")])
def test_gptqmodel(pressed: Path, name: str, zeros: str) -> None:
    package = pytest.importorskip("gptqmodel", reason=WHY)
    directory = pressed / f"{name}-{zeros}"
    options = {"device": "cpu", "backend": "torch", "dtype": torch.float16}
    loaded = package.GPTQModel.load(str(directory), **options)
    assert_worth_the_same(loaded.model.eval(), directory)


def test_gptqmodel_refuses_what_the_plan_says_it_refuses(pressed: Path) -> None:
    """Should it take such files some day, the note of the plan is to go."""
    package = pytest.importorskip("gptqmodel", reason=WHY)
    with pytest.raises(ValueError, match="sym=False"):
        package.GPTQModel.load(str(pressed / "gptq-asym"), device="cpu", backend="torch")


@pytest.mark.parametrize("zeros", ["sym", "asym"])
def test_autoawq(pressed: Path, zeros: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last release, of May 2025. On a CPU it asks for a package that is no longer made, so it
    is told of a GPU, and that there is no triton: what is left is its code in plain torch."""
    package = pytest.importorskip("awq", reason=WHY)
    monkeypatch.setattr("awq.models.base.get_best_device", lambda: "cuda:0")
    monkeypatch.setattr("awq.modules.linear.gemm.TRITON_AVAILABLE", False)
    directory = pressed / f"awq-{zeros}"
    options = {"fuse_layers": False, "device_map": {"": "cpu"}}
    loaded = package.AutoAWQForCausalLM.from_quantized(str(directory), **options)
    assert_worth_the_same(loaded.model.eval(), directory)
