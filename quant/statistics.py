"""Second moments of a linear's inputs."""

import torch

_ROWS = 8192
_TILE = 256


class InputMoments:
    """Sum of x x^T over tokens, kept as a sum and a count: running means lose bits."""

    def __init__(self, columns: int) -> None:
        self.tokens = 0
        self._sum = torch.zeros(columns, columns)

    def add(self, inputs: torch.Tensor) -> None:
        """inputs: [..., columns], any float type; products and sums are float32, in fixed order.

        Only tiles on and above the diagonal are computed; the matrix is symmetric.
        """
        columns = len(self._sum)
        flat = inputs.reshape(-1, columns)
        for rows in torch.split(flat, _ROWS):
            wide = rows.float()
            for start in range(0, columns, _TILE):
                left = wide[:, start : start + _TILE]
                self._sum[start : start + _TILE, start:].addmm_(left.T, wide[:, start:])
        self.tokens += len(flat)

    def hessian(self) -> torch.Tensor:
        """float32 [columns, columns]: the mean of x x^T."""
        upper = torch.triu(self._sum)
        return (upper + torch.triu(upper, 1).T) / max(self.tokens, 1)
