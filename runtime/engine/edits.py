"""What penalties, biases, forbidden tokens and a grammar do to a row, as plain arrays."""

import numpy as np
import numpy.typing as npt

from runtime.engine.batch import Int32, LogitEdits
from runtime.engine.candidates import Float32

Bools = npt.NDArray[np.bool_]


class EditsBuilder:
    """Collects the edits of one row over a vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        self._touched = np.zeros(vocab_size, np.bool_)
        self._penalized: list[tuple[Bools, np.float32]] = []
        self._subtracted: list[tuple[Float32, np.float32, np.float32]] = []
        self._added: list[tuple[npt.NDArray[np.intp], Float32]] = []
        self._banned = np.zeros(vocab_size, np.bool_)
        self._allowed: Bools | None = None

    def penalize(self, seen: Bools, penalty: float) -> None:
        """The repetition penalty of the tokens that were seen."""
        self._touched |= seen
        self._penalized.append((seen, np.float32(penalty)))

    def subtract(self, counts: Float32, frequency: float, presence: float) -> None:
        """Both penalties of the tokens that the answer has so often."""
        self._touched |= counts > 0
        self._subtracted.append((counts, np.float32(frequency), np.float32(presence)))

    def add(self, ids: npt.NDArray[np.intp], bias: Float32) -> None:
        self._touched[ids] = True
        self._added.append((ids, bias))

    def ban(self, ids: "npt.NDArray[np.intp] | list[int]") -> None:
        self._touched[ids] = self._banned[ids] = True

    def allow_only(self, allowed: Bools) -> None:
        """Once more, and what both allow stays."""
        self._allowed = allowed if self._allowed is None else self._allowed & allowed

    def edits(self) -> LogitEdits:
        ids = np.flatnonzero(self._touched)
        factor = np.ones(len(ids), np.float32)
        frequency, presence, bias = (np.zeros(len(ids), np.float32) for _ in range(3))
        for seen, penalty in self._penalized:
            factor[seen[ids]] = penalty
        for counts, each, any_ in self._subtracted:
            frequency += each * counts[ids]
            presence += any_ * (counts[ids] > 0)
        for biased, numbers in self._added:
            bias[np.searchsorted(ids, biased)] += numbers
        bias[self._banned[ids]] = -np.inf
        allowed = None if self._allowed is None else _bits(self._allowed)
        return LogitEdits(ids.astype(np.int32), factor, frequency, presence, bias, allowed)


def _bits(mask: Bools) -> Int32:
    """int32 [ceil(len / 32)], the lowest bit first."""
    padded = np.zeros(-(-len(mask) // 32) * 32, np.bool_)
    padded[: len(mask)] = mask
    return np.packbits(padded, bitorder="little").view("<i4").astype(np.int32)


def apply(row: Float32, edits: LogitEdits) -> Float32:
    """The edited copy of a row, float32 [vocab]: what an executor's kernels have to give."""
    edited = row.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        x = edited[edits.ids]
        x = np.where(x > 0, x / edits.factor, x * edits.factor)
        edited[edits.ids] = x - edits.frequency - edits.presence + edits.bias
    if edits.allowed is not None:
        bits = np.unpackbits(edits.allowed.view(np.uint8), bitorder="little")
        edited[bits[: len(row)] == 0] = -np.inf
    return edited
