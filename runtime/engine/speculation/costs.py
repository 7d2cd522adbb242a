"""What a step costs, by how many tokens it computes."""

_DECAY = 0.97


class StepCosts:
    """The line through the times of the last steps, seconds = fixed + each * tokens, by least
    squares with fading weights. Until steps of different sizes were seen, a token more is free:
    that is how they come to be seen."""

    def __init__(self) -> None:
        self._weight = self._x = self._xx = self._y = self._xy = 0.0

    def note(self, num_tokens: int, seconds: float) -> None:
        """A step of that many tokens took so long."""
        for name, value in (
            ("_weight", 1.0),
            ("_x", num_tokens),
            ("_xx", num_tokens * num_tokens),
            ("_y", seconds),
            ("_xy", num_tokens * seconds),
        ):
            setattr(self, name, _DECAY * getattr(self, name) + value)

    def line(self) -> tuple[float, float]:
        """`fixed` and `each`, neither below 0."""
        if self._weight == 0:
            return 0.0, 0.0
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        spread = self._xx / self._weight - mean_x * mean_x
        if spread < 1e-6:
            return mean_y, 0.0
        each = max(0.0, (self._xy / self._weight - mean_x * mean_y) / spread)
        # A line that meets zero tokens below zero seconds says that they cost all there is.
        return max(0.0, mean_y - each * mean_x), min(each, mean_y / mean_x)
