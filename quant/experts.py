"""Experts as checkpoints name them: one Linear for each matrix of each expert.

transformers keeps the experts of a layer in 3-D parameters. A scheme, a Hessian, a report and a
file belong to one matrix, so that the skeleton holds them one by one; the function is the same.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from quant.format.errors import UnsupportedModelError
from quant.format.experts import EXPERT_NAMES, ExpertNames

Activation = Callable[[torch.Tensor], torch.Tensor]


class Expert(torch.nn.Module):
    """One expert. Its three linears have the names that `names` gives them."""

    def __init__(
        self, hidden: int, inner: int, act: Activation, names: ExpertNames, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.names = names
        self._act = act
        for name, width, rows in (
            (names.gate, hidden, inner),
            (names.up, hidden, inner),
            (names.down, inner, hidden),
        ):
            linear = torch.nn.Linear(width, rows, bias=False, device="meta", dtype=dtype)
            self.add_module(name, linear.requires_grad_(False))

    def inner(self, rows: torch.Tensor) -> torch.Tensor:
        """What the last linear reads: [tokens, hidden] -> [tokens, inner]."""
        gate: torch.Tensor = self.get_submodule(self.names.gate)(rows)
        up: torch.Tensor = self.get_submodule(self.names.up)(rows)
        return self._act(gate) * up

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] -> [tokens, hidden]."""
        output: torch.Tensor = self.get_submodule(self.names.down)(self.inner(rows))
        return output


class Experts(torch.nn.ModuleList):
    """The experts of one layer, by number."""

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden_states: [tokens, hidden]; top_k_index, top_k_weights: [tokens, experts per token].
        Sums in the order of transformers' own loop over experts, so that they end in the same bits.
        """
        result = torch.zeros_like(hidden_states)
        for number, places, tokens in routed(top_k_index, len(self)):
            output = self[number](hidden_states[tokens]) * top_k_weights[tokens, places, None]
            result.index_add_(0, tokens, output.to(result.dtype))
        return result


def routed(
    top_k_index: torch.Tensor, count: int
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(expert, place in its row of `top_k_index`, token) of each expert that a token goes to."""
    by_place = top_k_index.T
    for number in range(count):
        places, tokens = torch.where(by_place == number)
        if len(tokens):
            yield number, places, tokens


def split_experts(model: Any, layers: torch.nn.ModuleList) -> None:
    """Put `Experts` in place of each 3-D pair of parameters in the decoder layers, in place.

    Parameters are on the meta device before and after. Raises UnsupportedModelError for experts of
    a family whose arithmetic is not known.
    """
    kind = str(model.config.get_text_config().model_type)
    for layer in layers:
        for name, module in list(layer.named_modules()):
            stacked = any(p.ndim == 3 for p in module.parameters(recurse=False))
            if stacked and not isinstance(module, torch.nn.Conv1d):
                _replace(kind, layer, name, module)


def find_experts(root: torch.nn.Module) -> dict[str, Experts]:
    """Every `Experts` under `root`, by module name."""
    return {name: module for name, module in root.named_modules() if isinstance(module, Experts)}


def find_routers(root: torch.nn.Module) -> list[str]:
    """Names of the modules that weigh experts, shared ones too: those with a weight of their own
    beside the experts."""
    return [
        f"{name.removesuffix('experts')}{sibling}"
        for name in find_experts(root)
        for sibling, module in root.get_submodule(name.rpartition(".")[0]).named_children()
        if "weight" in module._parameters
    ]


def _replace(kind: str, layer: torch.nn.Module, name: str, module: Any) -> None:
    """The block that holds `module` gets its name in the files, too."""
    held = {leaf: tuple(p.shape) for leaf, p in module.named_parameters(recurse=False)}
    block, _, leaf = name.rpartition(".")
    known = set(held) == {"gate_up_proj", "down_proj"} and leaf == "experts" and "." not in block
    if kind not in EXPERT_NAMES or not known:
        raise UnsupportedModelError(
            f"config.json: the experts of model_type {kind!r} hold {', '.join(held)} in a way that "
            f"is not known; mixtures of experts known here are {', '.join(EXPERT_NAMES)}"
        )
    names = EXPERT_NAMES[kind]
    count, hidden, inner = held["down_proj"]
    assert held["gate_up_proj"] == (count, 2 * inner, hidden)
    dtype = module.down_proj.dtype
    experts = Experts(Expert(hidden, inner, module.act_fn, names, dtype) for _ in range(count))
    holder = layer.get_submodule(block)
    holder.experts = experts.eval()
    if block != names.block:
        del layer._modules[block]
        layer.add_module(names.block, holder)
        # the layer's own forward still reads the attribute that transformers gave it
        layer.__dict__[block] = holder
