"""Moving a scale from the producer of channels to their readers, without changing the function.

What a producer outside the rounded linears can hold (a norm's gain, a bias) is a number of the
checkpoint's own type, so that dividing it by a scale rounds. The scale that readers then multiply
by is the ratio of the two numbers as stored: their product is what it was, and only the choice of
the scale suffers. Where a matrix that stays in 16 bit is concerned, scales are powers of two, which
it can carry exactly.
"""

from collections.abc import Collection, Mapping

import torch

from quant.transforms.points import FoldPoint


class FoldedLayer:
    """A decoder layer whose scales are being moved.

    weights: float32 weights of the linears that were changed, by name inside the layer, exact to
    float32 where the layer itself holds them in the dtype that it computes in. written: parameters
    that will not be rounded and have changed, by name inside the layer, as they are to be stored.
    """

    def __init__(
        self,
        layer: torch.nn.Module,
        rounded: Collection[str],
        stored: Mapping[str, torch.dtype],
        offset_norms: bool = False,
    ) -> None:
        """rounded: linears that will be rounded. stored: dtype of each parameter in the checkpoint,
        by name inside the layer, that of the layer's own parameter where a name is missing."""
        self.layer = layer
        self.weights: dict[str, torch.Tensor] = {}
        self.written: dict[str, torch.Tensor] = {}
        self._rounded = frozenset(rounded)
        self._stored = stored
        self._offset = 1.0 if offset_norms else 0.0

    def weight(self, name: str) -> torch.Tensor:
        """float32 [out, in] of a linear, as folded so far."""
        if name in self.weights:
            return self.weights[name]
        return self._parameter(f"{name}.weight").float()

    def storable(self, point: FoldPoint, scale: torch.Tensor) -> torch.Tensor:
        """The scale nearest to `scale` (float32 [channels], positive) that can be moved exactly.

        1 for channels where the stored numbers leave no other choice.
        """
        exact = not self._rounded.issuperset(self._matrices(point))
        if exact:
            scale = self._powers_of_two(point, scale)
        vector = self._vector(point)
        if vector is None:
            return scale
        values, dtype, offset = vector
        divided = (values / scale - offset).to(dtype).float() + offset
        usable = torch.isfinite(divided) & (divided.abs() >= torch.finfo(dtype).tiny)
        moved = values / torch.where(usable, divided, values)
        moved = torch.where(values == 0, scale, moved)
        return torch.where(moved == scale, scale, torch.ones_like(scale)) if exact else moved

    def apply(self, point: FoldPoint, scale: torch.Tensor) -> None:
        """Divide the producer's channels by `scale` and let the readers multiply by it.

        scale: float32 [channels], as `storable` gave it.
        """
        if point.kind == "norm":
            gain = self._gain(point)
            self._write(f"{point.producer}.weight", gain / scale - self._offset)
        else:
            self._set_weight(point.producer, self.weight(point.producer) / scale[:, None])
            bias = self._bias(point)
            if bias is not None:
                self._write(f"{point.producer}.bias", bias / scale)
        columns = point.spread(scale)
        for name in point.readers:
            self._set_weight(name, self.weight(name) * columns)

    def set_rounded(self, name: str, weight: torch.Tensor) -> None:
        """Another float32 weight for a linear that will be rounded."""
        assert name in self._rounded
        self._set_weight(name, weight)

    def _set_weight(self, name: str, weight: torch.Tensor) -> None:
        if name not in self._rounded:
            self._write(f"{name}.weight", weight)
            return
        self.weights[name] = weight
        self._parameter(f"{name}.weight").copy_(weight)

    def _write(self, name: str, value: torch.Tensor) -> None:
        parameter = self._parameter(name)
        value = value.to(self._stored_dtype(name))
        self.written[name] = value
        parameter.copy_(value)

    def _parameter(self, name: str) -> torch.Tensor:
        return self.layer.get_parameter(name)

    def _stored_dtype(self, name: str) -> torch.dtype:
        return self._stored.get(name, self._parameter(name).dtype)

    def _gain(self, point: FoldPoint) -> torch.Tensor:
        return self._parameter(f"{point.producer}.weight").float() + self._offset

    def _bias(self, point: FoldPoint) -> torch.Tensor | None:
        bias = self.layer.get_submodule(point.producer).bias
        return bias.float() if isinstance(bias, torch.Tensor) else None

    def _matrices(self, point: FoldPoint) -> list[str]:
        return [*point.readers, *([] if point.kind == "norm" else [point.producer])]

    def _vector(self, point: FoldPoint) -> tuple[torch.Tensor, torch.dtype, float] | None:
        """(values [channels], stored dtype, offset) of what is divided but never rounded to a
        grid: a norm's gain, or a bias where there is one."""
        if point.kind == "norm":
            dtype = self._stored_dtype(f"{point.producer}.weight")
            return self._gain(point), dtype, self._offset
        bias = self._bias(point)
        if bias is None:
            return None
        return bias, self._stored_dtype(f"{point.producer}.bias"), 0.0

    def _powers_of_two(self, point: FoldPoint, scale: torch.Tensor) -> torch.Tensor:
        """Powers of two that every 16-bit matrix of the point carries without loss."""
        scale = torch.exp2(torch.round(torch.log2(scale)))
        for name in self._matrices(point):
            if name in self._rounded:
                continue
            weight = self.weight(name)
            if name == point.producer:
                moved = weight / scale[:, None]
                exact = (moved.to(self._stored_dtype(f"{name}.weight")).float() == moved).all(1)
            else:
                moved = weight * point.spread(scale)
                same = moved.to(self._stored_dtype(f"{name}.weight")).float() == moved
                exact = ~point.gather((~same.all(0)).float(), largest=True).bool()
            scale = torch.where(exact, scale, torch.ones_like(scale))
        return scale
