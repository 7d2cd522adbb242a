"""Forwards of a decoder layer that halt where a linear is about to read its input."""

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch

from quant.capture import LayerArguments
from quant.workers import single_threaded


class _AbortedError(Exception):
    """Ends the forwards that nobody waits for any more."""


class HaltedForwards:
    """One forward of `layer` for each of `batches` [samples, tokens, hidden], side by side.

    Each halts before the linears `stops`, which it reaches in their order, until `release`. So a
    linear can be replaced when the inputs of all batches are known, and what is computed after it
    uses what replaced it, without computing anything twice. At most `threads` of them run at once.
    Use as a context manager: leaving it ends what still runs.
    """

    def __init__(
        self,
        layer: torch.nn.Module,
        arguments: LayerArguments,
        batches: Sequence[torch.Tensor],
        stops: Sequence[str],
        threads: int,
        noted: Sequence[str] = (),
    ) -> None:
        """noted: modules whose inputs are only kept, for `noted`."""
        self._layer = layer
        self._noted: dict[str, list[torch.Tensor | None]] = {
            name: [None] * len(batches) for name in noted
        }
        self._arguments = arguments
        self._order = {name: index for index, name in enumerate(stops)}
        self._slots = threading.Semaphore(threads)
        self._changed = threading.Condition()
        self._position = [-1] * len(batches)
        self._inputs: list[tuple[Any, ...]] = [()] * len(batches)
        self._outputs: list[torch.Tensor | None] = [None] * len(batches)
        self._error: BaseException | None = None
        self._released = 0
        self._mine = threading.local()
        self._threads = [
            threading.Thread(target=self._forward, args=(index, batch), daemon=True)
            for index, batch in enumerate(batches)
        ]

    def __enter__(self) -> "HaltedForwards":
        self._handles = [
            self._layer.get_submodule(name).register_forward_pre_hook(self._hook(name))
            for name in self._order
        ]
        self._handles += [
            self._layer.get_submodule(name).register_forward_pre_hook(self._note(name))
            for name in self._noted
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._error = self._error or _AbortedError()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for handle in self._handles:
            handle.remove()

    def inputs(self, name: str) -> list[torch.Tensor | None]:
        """What the linear `name` is about to read in each forward, once all of them are there;
        None in a forward that passes it by."""
        return [args[0] if args else None for args in self.arguments(name)]

    def arguments(self, name: str) -> list[tuple[Any, ...]]:
        """All that the module `name` is about to be called with, likewise; () where it is not."""
        stop = self._order[name]
        self._wait_for(stop)
        return [
            args if position == stop else ()
            for args, position in zip(self._inputs, self._position, strict=True)
        ]

    def noted(self, name: str) -> list[torch.Tensor | None]:
        """What the noted module `name` read, in the forwards that have passed it."""
        return list(self._noted[name])

    def release(self, name: str) -> None:
        """Let the forwards go on from `name`."""
        with self._changed:
            self._released = self._order[name] + 1
            self._changed.notify_all()

    def outputs(self) -> list[torch.Tensor]:
        """The layer's outputs, when all forwards are done."""
        self._wait_for(len(self._order))
        return [output for output in self._outputs if output is not None]

    def _wait_for(self, stop: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._error or min(self._position) >= stop)
            if self._error is not None:
                raise self._error

    def _forward(self, index: int, batch: torch.Tensor) -> None:
        single_threaded()
        self._mine.index = index
        try:
            with torch.no_grad(), self._slots:
                output = self._layer(batch, *self._arguments.args, **self._arguments.kwargs)
            self._outputs[index] = output if isinstance(output, torch.Tensor) else output[0]
            self._arrive(index, len(self._order), ())
        except BaseException as error:  # whatever it is, the thread that waits must know
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _note(self, name: str) -> Any:
        def note(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
            self._noted[name][self._mine.index] = args[0]

        return note

    def _hook(self, name: str) -> Any:
        stop = self._order[name]

        def halt(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
            if stop < self._released:
                return
            self._arrive(self._mine.index, stop, args)
            self._slots.release()
            try:
                with self._changed:
                    self._changed.wait_for(lambda: self._error or self._released > stop)
            finally:
                self._slots.acquire()
            if self._error is not None:
                raise _AbortedError

        return halt

    def _arrive(self, index: int, stop: int, args: tuple[Any, ...]) -> None:
        with self._changed:
            self._inputs[index] = args
            self._position[index] = stop
            self._changed.notify_all()
