"""Second moments of a linear's inputs."""

import torch

_ROWS = 8192
_TILE = 256


class InputMoments:
    """Weighted sum of x x^T over tokens, kept as a sum and a weight: running means lose bits.

    first_token_share: how much of the whole the first token of each sample counts for. Most heads
    spend much of their attention there wherever nothing else calls for it (Xiao et al., "Efficient
    Streaming Language Models with Attention Sinks", ICLR 2024), so that an error at that one token
    reaches all others, while a plain mean would hardly see it. 0 counts all tokens alike.
    """

    def __init__(self, columns: int, first_token_share: float = 0.0) -> None:
        self.tokens = 0
        self._share = first_token_share
        self._weight = 0.0
        self._sum = torch.zeros(columns, columns)

    def add(self, inputs: torch.Tensor) -> None:
        """inputs: [samples, tokens, columns], or [tokens, columns], where first tokens cannot be
        told and all count alike; any float type. Products and sums are float32, in fixed order.
        """
        flat = inputs.reshape(-1, len(self._sum))
        self._add_rows(flat, 1.0)
        self.tokens += len(flat)
        if inputs.ndim == 3 and self._share > 0.0:
            extra = self._share / (1.0 - self._share) * (inputs.shape[1] - 1) - 1.0
            if extra > 0.0:
                self._add_rows(inputs[:, 0], extra)

    def _add_rows(self, rows: torch.Tensor, weight: float) -> None:
        """Only tiles on and above the diagonal are computed; the matrix is symmetric."""
        columns = len(self._sum)
        for part in torch.split(rows, _ROWS):
            wide = part.float()
            for start in range(0, columns, _TILE):
                left = wide[:, start : start + _TILE]
                tile = self._sum[start : start + _TILE, start:]
                tile.addmm_(left.T, wide[:, start:], alpha=weight)
        self._weight += weight * len(rows)

    def hessian(self) -> torch.Tensor:
        """float32 [columns, columns]: the weighted mean of x x^T."""
        upper = torch.triu(self._sum)
        return (upper + torch.triu(upper, 1).T) / max(self._weight, 1.0)
