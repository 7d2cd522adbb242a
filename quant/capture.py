"""What reaches the first decoder layer: hidden states, and the arguments of every layer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quant.activations import empty_activations
from quant.format.errors import UnsupportedModelError
from quant.skeleton import Skeleton


@dataclass(frozen=True)
class LayerArguments:
    """Everything but the hidden states that the model hands to one decoder layer."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Recorder:
    """Stands in for the forward of one decoder layer: notes its arguments, passes states on."""

    def __init__(self, as_tuple: bool) -> None:
        self.hidden: torch.Tensor | None = None
        self.final: torch.Tensor | None = None
        self.instead: torch.Tensor | None = None
        self.arguments: LayerArguments | None = None
        self._as_tuple = as_tuple

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rest = dict(kwargs)
        states = args[0] if args else rest.pop("hidden_states")
        states = states if self.instead is None else self.instead
        self.hidden = states
        self.arguments = LayerArguments(args[1:], rest)
        return (states,) if self._as_tuple else states


@torch.no_grad()
def capture_inputs(
    skeleton: Skeleton,
    tokens: torch.Tensor,
    directory: Path | None = None,
    into: torch.Tensor | None = None,
) -> tuple[torch.Tensor, list[LayerArguments]]:
    """(hidden states [samples, tokens, hidden] before layer 0, arguments of each layer).

    tokens: int64 [samples, tokens]. The embeddings must be loaded. The arguments are those of one
    sample, which broadcast over others of the same length. The states are written to `into`, or to
    a new tensor; see `quant.activations`.
    """
    recorders = _record(skeleton, tokens[:1])
    arguments = [r.arguments for r in recorders if r.arguments is not None]
    if len(arguments) != len(skeleton.layers):
        raise UnsupportedModelError("the model did not call each of its decoder layers once")
    for index, sample in enumerate(tokens):
        states = _record(skeleton, sample[None])[0].hidden
        assert states is not None
        if into is None:
            into = empty_activations((len(tokens), *states.shape[1:]), states.dtype, directory)
        into[index] = states[0]
    assert into is not None
    return into, arguments


@torch.no_grad()
def final_states(skeleton: Skeleton, hidden: torch.Tensor) -> torch.Tensor:
    """What the output head reads, of `hidden` [samples, tokens, hidden] behind the last layer. The
    parameters outside the layers must be loaded."""
    tokens = torch.zeros(hidden.shape[:2], dtype=torch.int64)
    final = _record(skeleton, tokens, hidden)[-1].final
    assert final is not None
    return final


def _record(
    skeleton: Skeleton, tokens: torch.Tensor, instead: torch.Tensor | None = None
) -> list[_Recorder]:
    """Some models take a layer's output as it is, others its first element: shapes tell which.

    instead: what layer 0 gives, whatever it gets.
    """
    for as_tuple in (False, True):
        recorders = [_Recorder(as_tuple) for _ in skeleton.layers]
        recorders[0].instead = instead
        for layer, recorder in zip(skeleton.layers, recorders, strict=True):
            layer.forward = recorder
        try:
            output = skeleton.model.base_model(input_ids=tokens, use_cache=False)
            recorders[-1].final = output[0]
        except (TypeError, IndexError, AttributeError, RuntimeError):
            if as_tuple:
                raise
            continue
        finally:
            for layer in skeleton.layers:
                del layer.forward
        first, last = recorders[0].hidden, recorders[-1].hidden
        if first is not None and last is not None and first.shape == last.shape:
            return recorders
    raise UnsupportedModelError("the model's decoder layers do not pass hidden states along")
