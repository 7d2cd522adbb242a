"""The form of every weight of a model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from compile.model import Model
from compile.program import Embed, Logits, Moe, Program
from compile.to_onnx.inputs import can_round
from compile.to_onnx.types import Form, Role, TypeName, choose_form
from quant.format.errors import UnsupportedModelError
from quant.format.scheme import FloatScheme, Scheme
from quant.format.tensor import QuantizedTensor


def choose_forms(model: Model, type_name: TypeName, round_inputs: bool) -> Mapping[str, Form]:
    """Of every weight that the Program reads. Headers decide, but where groups may be scattered.

    Raises UnsupportedModelError naming the tensor that the graph cannot hold.
    """
    shapes, roles = model.program.weights(), _roles(model.program)
    schemes = {name: model.weights.scheme(name) for name in shapes}
    # Floats beside integers were left so by whoever quantized the model.
    round_floats = all(isinstance(scheme, FloatScheme) for scheme in schemes.values())
    forms = {
        name: choose_form(
            name, schemes[name], shape, type_name, roles.get(name, "plain"), round_floats
        )
        for name, shape in shapes.items()
    }
    if _may_scatter(model.config):
        forms = {name: _with_order(model, name, form) for name, form in forms.items()}
    if round_inputs:
        forms = {
            name: _with_inputs(schemes[name], shapes[name], form) for name, form in forms.items()
        }
    return forms


def _with_inputs(scheme: Scheme, shape: tuple[int, ...], form: Form) -> Form:
    activation = None if isinstance(scheme, FloatScheme) else scheme.activation
    if activation is None or form.group is None or form.rounded:
        return form
    return replace(form, inputs=activation) if can_round(activation, shape[1]) else form


def _roles(program: Program) -> dict[str, Role]:
    """Of every matrix but routers, which decide and are small."""
    routed = {op.logits for op in program.ops if isinstance(op, Moe)}
    roles: dict[str, Role] = {
        op.weight: "head" if isinstance(op, Logits) else "linear"
        for op in program.projections()
        if op.out not in routed
    }
    return roles | {op.weight: "table" for op in program.ops if isinstance(op, Embed)}


def _may_scatter(config: Mapping[str, Any]) -> bool:
    """Whether the groups of some weights may have scattered columns: GPTQ's and
    compressed-tensors' words for it."""
    said = config.get("quantization_config") or {}
    groups = (said.get("config_groups") or {}).values()
    return bool(said.get("desc_act")) or any(
        (group.get("weights") or {}).get("actorder") for group in groups
    )


def _with_order(model: Model, name: str, form: Form) -> Form:
    """Only the numbers tell: each is read once more, and let go."""
    if not form.group or form.gathered or form.rounded:
        return form
    weight = model.weights.load(name)
    assert isinstance(weight, QuantizedTensor)
    if weight.group_index is None:
        return form
    if (np.bincount(weight.group_index) != form.group).any():
        raise UnsupportedModelError(
            f"tensor {name} has scattered groups of different sizes; use --target onnx:fp32"
        )
    return replace(form, ordered=True)
