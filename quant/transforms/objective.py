"""How much a block's output changes when linears in it are rounded at some scale."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from quant.format.scheme import ActivationScheme
from quant.skeleton import set_parameter
from quant.transforms.inputs import round_inputs
from quant.transforms.observe import Call, sharing_copy

NOTHING: Mapping[str, Any] = MappingProxyType({})


class BlockError:
    """Mean squared error of a module's output, in float32, against its output as it is.

    Several threads may ask at once.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        call: Call,
        first_token_share: float = 0.0,
        exact: Mapping[str, torch.Tensor] = NOTHING,
    ) -> None:
        """exact: parameters that are known better than `module` holds them, by name inside it.

        first_token_share: how much of the mean the first token of each sample counts for, as in
        `quant.statistics`; 0 counts all alike.
        """
        self._module = sharing_copy(module)
        for name, parameter in module.named_parameters():
            set_parameter(self._module, name, exact.get(name, parameter).float())
        self._args, self._kwargs = _wide(call.args), _wide(dict(call.kwargs))
        self._share = first_token_share
        self._target = _first(self._module(*self._args, **self._kwargs))

    def __call__(
        self,
        weights: Mapping[str, torch.Tensor],
        scales: Mapping[str, torch.Tensor] = NOTHING,
        activations: Mapping[str, ActivationScheme] = NOTHING,
    ) -> float:
        """The error with other `weights`, by parameter name inside the module.

        activations: linears whose inputs are rounded, after division by their `scales` [columns].
        """
        module = sharing_copy(self._module)
        for name, weight in weights.items():
            set_parameter(module, name, weight)
        for name, scheme in activations.items():
            hook = _rounding_hook(scheme, scales.get(name))
            module.get_submodule(name).register_forward_pre_hook(hook)
        output = _first(module(*self._args, **self._kwargs))
        return self._mean((output - self._target).square_().mean(-1))

    def _mean(self, lost: torch.Tensor) -> float:
        """lost: [samples, tokens], or [tokens], where first tokens cannot be told."""
        length = lost.shape[-1]
        if lost.ndim < 2 or self._share * length <= 1.0:
            return float(lost.double().mean())
        first, rest = float(lost[..., 0].double().mean()), float(lost[..., 1:].double().mean())
        return self._share * first + (1.0 - self._share) * rest


def _first(output: Any) -> torch.Tensor:
    tensor: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return tensor


def _rounding_hook(
    scheme: ActivationScheme, scale: torch.Tensor | None
) -> Callable[[torch.nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if scale is None:
            return (round_inputs(args[0], scheme), *args[1:])
        return (round_inputs(args[0] / scale, scheme) * scale, *args[1:])

    return hook


def _wide(value: Any) -> Any:
    """Every floating tensor inside `value` as float32."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _wide(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_wide(item) for item in value)
    return value
