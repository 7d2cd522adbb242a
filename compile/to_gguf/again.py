"""What is lost where a type is asked for by name that cannot hold the checkpoint's integers."""

import math

from quant.format.ggml_again import exact_blocks, relative_rms, rounded_again
from quant.format.gguf_types import GgmlType
from quant.format.tensor import QuantizedTensor


class RoundedAgain:
    """Quantized weights as blocks of a type that was asked for, with a record of what it cost."""

    def __init__(self) -> None:
        self._lost: list[float] = []

    def blocks(self, name: str, kind: GgmlType, weight: QuantizedTensor) -> QuantizedTensor:
        """The same numbers where blocks of `kind` hold them, else their values rounded again."""
        exact = exact_blocks(name, kind, weight)
        if exact is not None:
            return exact
        rounded = rounded_again(name, kind, weight)
        self._lost.append(relative_rms(weight, rounded))
        return rounded

    def notes(self) -> list[str]:
        """One sentence, where anything was rounded again."""
        if not self._lost:
            return []
        mean = math.sqrt(sum(lost * lost for lost in self._lost) / len(self._lost))
        return [
            f"{len(self._lost)} quantized matrices were rounded again: relative rms error "
            f"{mean:.2g}, {max(self._lost):.2g} at most"
        ]
