"""All contenders' times become cells in the same way."""

from collections.abc import Sequence

import pytest

from benchmarks.speed import cells
from benchmarks.speed.cells import Times, measure


def test_decoding_counts_from_when_all_have_their_first_token() -> None:
    times = Times(10.0, [[11.0, 12.0, 13.0, 14.0], [12.0, 13.0, 14.0]])
    assert (times.prefilled, times.end) == (12.0, 14.0)
    assert times.decode_rate == 4 / 2.0


class Clockwork:
    """Takes a millisecond for each token of a prompt and a second for each step."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[tuple[int, int, int]] = []

    def generate(self, prompts: Sequence[Sequence[int]], output: int) -> Times:
        self.asked.append((len(prompts), len(prompts[0]), output))
        start = self.now
        first = start + sum(len(prompt) for prompt in prompts) / 1000
        times = [[first + step for step in range(output)] for _ in prompts]
        self.now = times[0][-1] + 1.0
        return Times(start, times)


def test_an_engine_gives_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    clockwork = Clockwork()
    found = measure(clockwork.generate, 1000)
    assert found.pop("prefill_512") == pytest.approx(1000)
    assert found.pop("in_flight") == pytest.approx(32 * 128 / (32 * 0.128 + 127))
    assert found == {f"decode_{n}": pytest.approx(n) for n in (1, 4, 8, 16)}
    assert set(clockwork.asked) == {
        *[(2, 128, 4), (1, 512, 1), (32, 128, 128)],
        *[(n, 128, 1 + output) for n, output in cells.STREAMS.items()],
    }
