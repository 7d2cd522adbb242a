"""The skeleton of a mixture of experts: names as in the file, function as in transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from quant.experts import find_experts, find_routers
from quant.format.checkpoint import open_checkpoint
from quant.format.errors import UnsupportedModelError
from quant.format.experts import EXPERT_NAMES
from quant.skeleton import Skeleton, build_skeleton, loaded
from tests.tiny import tiny_checkpoint, tiny_config, tiny_shapes

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe")


def _skeleton(path: Path) -> Skeleton:
    return build_skeleton(path, open_checkpoint(path).config)


def _theirs(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, experts_implementation="eager", attn_implementation="sdpa"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_named_as_in_the_file(family: str, tmp_path: Path) -> None:
    skeleton = _skeleton(tiny_checkpoint(tmp_path, family))
    assert skeleton.expected_tensors() == tiny_shapes(tiny_config(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_function_is_that_of_transformers(family: str, tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, family, dtype="float32")
    skeleton = _skeleton(path)
    tokens = torch.arange(3, 99).reshape(2, 48)
    names = {name: name for name, _ in skeleton.model.named_parameters()}
    with torch.no_grad(), loaded(skeleton.model, names, open_checkpoint(path), torch.float32):
        ours = skeleton.model(tokens).logits
        theirs = _theirs(path)(tokens).logits
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("family", "routers"),
    [
        ("mixtral", ["block_sparse_moe.gate"]),
        ("qwen3_moe", ["mlp.gate"]),
        ("qwen2_moe", ["mlp.gate", "mlp.shared_expert_gate"]),
    ],
)
def test_routers_are_no_linears_to_quantize(
    family: str, routers: list[str], tmp_path: Path
) -> None:
    skeleton = _skeleton(tiny_checkpoint(tmp_path, family))
    assert find_routers(skeleton.layers[0]) == routers
    assert list(find_experts(skeleton.layers[0])) == [f"{routers[0].split('.')[0]}.experts"]
    assert not any(name.endswith(tuple(routers)) for name in skeleton.linears())


def test_unknown_experts_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_checkpoint(tmp_path, "qwen3_moe")
    known = {kind: names for kind, names in EXPERT_NAMES.items() if kind != "qwen3_moe"}
    monkeypatch.setattr("quant.experts.EXPERT_NAMES", known)
    with pytest.raises(UnsupportedModelError, match="experts of model_type 'qwen3_moe'"):
        _skeleton(path)
