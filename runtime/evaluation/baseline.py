"""What a model is compared with: another one that runs beside it, or what one said before.

A baseline that runs can be kept: 16 bits per token of the vocabulary, the cube root of its
probability as a fraction of 65535. Losses and the most probable token are kept whole, so that
perplexity, its ratio and top-1 agreement lose nothing. Only the divergence sees the rounding. A
cube root r is off by at most h = 1/131070, so ln q by e = 3h/r to first order, and the second
moment of that under q is at most 9 h^2 sum(r) <= 9 h^2 V^(2/3) over V tokens, whatever the
distribution (power means).
By Cauchy and Schwarz a token's divergence moves by no more than

    s * sqrt(E_q[ln(q/p)^2]) + s^2 / 2,    s = 3 h V^(1/3)

to second order: s is 0.0008 for 49,152 tokens. Roundings know nothing of the model, so over a text
they cancel: the mean moves by orders of magnitude less.
"""

from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, runtime_checkable
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt

from quant.format.errors import FileFormatError
from runtime.engine.batch import Executor
from runtime.evaluation.protocol import Protocol, chunk_batch, require_room
from runtime.evaluation.scores import Float64, Int32, Reference, reference_of

Codes = npt.NDArray[np.uint16]

CODES, LOSS, TOP = "probabilities.npy", "loss.npy", "top.npy"
_WHOLE = 65535
_VALUES: Float64 = (np.arange(_WHOLE + 1) / _WHOLE) ** 3
"""Probability that each code stands for, before a row is brought to sum to one."""
_LOGARITHMS: Float64 = np.log(_VALUES, out=np.full_like(_VALUES, -np.inf), where=_VALUES > 0)


@runtime_checkable
class Baseline(Interface):
    """Follows the model through the same steps and tells its own predictions for them."""

    @property
    def vocab_size(self) -> int: ...

    def step(self, tokens: Int32, start: int, stop: int, scored: bool) -> None:
        """Go through positions [start, stop) of the window `tokens`."""
        ...

    def rows(self, rows: slice, targets: Int32) -> Reference:
        """Predictions for `rows` of the last step, whose true tokens are `targets`."""
        ...


class LiveBaseline:
    """A model that runs beside the one that is measured."""

    def __init__(self, executor: Executor, protocol: Protocol) -> None:
        require_room(executor, protocol.window)
        self._executor = executor
        self._logits: npt.NDArray[np.float32] | None = None

    @property
    def vocab_size(self) -> int:
        return self._executor.vocab_size

    def step(self, tokens: Int32, start: int, stop: int, scored: bool) -> None:
        batch = chunk_batch(self._executor, tokens, start, stop, all_logits=scored)
        self._logits = self._executor.step(batch)

    def rows(self, rows: slice, targets: Int32) -> Reference:
        assert self._logits is not None, "rows before a step"
        return reference_of(self._logits[rows], targets)


class KeptBaseline:
    """Predictions that `KeepingBaseline` wrote; read where they are needed, never all at once."""

    def __init__(self, directory: Path, tokens: int) -> None:
        """Raises FileFormatError where the files are not those of `tokens` scored tokens."""
        self._codes = _open(directory / CODES, np.uint16, 2, tokens)
        self._loss = _open(directory / LOSS, np.float64, 1, tokens)
        self._top = _open(directory / TOP, np.int64, 1, tokens)
        self._begin = self._end = 0

    @property
    def vocab_size(self) -> int:
        return int(self._codes.shape[1])

    def step(self, tokens: Int32, start: int, stop: int, scored: bool) -> None:
        self._begin = self._end
        self._end += stop - start if scored else 0

    def rows(self, rows: slice, targets: Int32) -> Reference:
        here = slice(self._begin + rows.start, self._begin + rows.stop)
        return decode(self._codes[here], np.array(self._loss[here]), np.array(self._top[here]))


class KeepingBaseline:
    """A baseline that runs and is written down; scores with what it wrote, so that the first
    evaluation and those that read it agree to the bit. A context manager; the files are whole when
    it ends well."""

    def __init__(self, live: LiveBaseline, directory: Path, tokens: int) -> None:
        self._live = live
        self._tokens, self._done = tokens, 0
        shapes: dict[str, tuple[npt.DTypeLike, tuple[int, ...]]] = {
            CODES: ("<u2", (tokens, live.vocab_size)),
            LOSS: ("<f8", (tokens,)),
            TOP: ("<i8", (tokens,)),
        }
        # Written in order, not mapped: a full disk is then an error, not the end of the process.
        self._files = {
            name: _begin(directory / name, *described) for name, described in shapes.items()
        }

    @property
    def vocab_size(self) -> int:
        return self._live.vocab_size

    def step(self, tokens: Int32, start: int, stop: int, scored: bool) -> None:
        self._live.step(tokens, start, stop, scored)

    def rows(self, rows: slice, targets: Int32) -> Reference:
        exact = self._live.rows(rows, targets)
        codes = encode(exact.probabilities)
        for name, array in ((CODES, codes), (LOSS, exact.loss), (TOP, exact.top)):
            self._files[name].write(np.ascontiguousarray(array).data)
        self._done += len(targets)
        return decode(codes, exact.loss, exact.top)

    def __enter__(self) -> "KeepingBaseline":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()
        assert kind is not None or self._done == self._tokens, "not every token was scored"


def encode(probabilities: Float64) -> Codes:
    """uint16 [rows, vocab] of float64 probabilities."""
    codes: Codes = np.rint(np.cbrt(probabilities) * _WHOLE).astype(np.uint16)
    return codes


def decode(codes: Codes, loss: Float64, top: npt.NDArray[np.int64]) -> Reference:
    """Rows that sum to one again; a code of 0 is a token without a chance."""
    values = _VALUES[codes]
    total = values.sum(axis=1, keepdims=True)
    return Reference(values / total, _LOGARITHMS[codes] - np.log(total), loss, top)


def kept_bytes(tokens: int, vocab_size: int) -> int:
    """Disk that a kept baseline takes."""
    return tokens * (2 * vocab_size + 16) + 3 * 128


def _begin(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> BinaryIO:
    file = path.open("xb")
    described = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file


def _open(path: Path, dtype: npt.DTypeLike, dimensions: int, tokens: int) -> npt.NDArray[Any]:
    try:
        found: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FileFormatError(path, "is not an array of numbers") from error
    if found.dtype != dtype or found.ndim != dimensions or found.shape[0] != tokens:
        raise FileFormatError(path, f"does not hold {tokens} scored tokens")
    return found
