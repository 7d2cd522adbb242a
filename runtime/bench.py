"""How fast a model answers on this machine, through the engine, beside what the machine allows."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from runtime.engine.batch import Executor
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, SamplingParams
from runtime.yardstick import NOTHING, Fractions, Yardstick

Clock = Callable[[], float]
Progress = Callable[[int, int, str], None]

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0}


@dataclass(frozen=True)
class Run:
    """One cell of the table: `concurrency` requests that start together, over all rounds.

    prefill: prompt tokens per second until the last request has its first token.
    decode: tokens per second from then on, while every request is decoding.
    ttft_ms, tpot_ms, itl_ms: percentiles over requests (first token; mean time per further token)
        and over tokens (gap between neighbours).
    prefill_fractions, decode_fractions: of the two phases, what weights, keys and values they had
        to read, and multiply, of what the machine can.
    fraction_of_limit: of decoding, against the limit that is nearer.
    """

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    total_tokens_per_second: float
    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]
    itl_ms: dict[str, float]
    prefill_fractions: Fractions
    decode_fractions: Fractions
    fraction_of_limit: float


@dataclass
class _Times:
    """Seconds on the clock at which one round's tokens came, by request, and its steps ended."""

    start: float
    steps: list[float] = field(default_factory=list)
    tokens: dict[str, list[float]] = field(default_factory=dict)

    @property
    def prefilled(self) -> float:
        return max(times[0] for times in self.tokens.values())

    @property
    def end(self) -> float:
        return max(times[-1] for times in self.tokens.values())

    def decoded(self) -> int:
        """Tokens that came after the last request had its first."""
        return sum(time > self.prefilled for times in self.tokens.values() for time in times)

    def drawn_before(self) -> int:
        """Tokens that came until then."""
        return sum(map(len, self.tokens.values())) - self.decoded()

    def steps_before(self) -> int:
        """Steps that ended until then."""
        return sum(time <= self.prefilled for time in self.steps)


def measure(
    executor: Executor,
    concurrency: int,
    *,
    prompt_tokens: int,
    output_tokens: int,
    yardstick: Yardstick = NOTHING,
    rounds: int = 1,
    max_step_tokens: int = 256,
    clock: Clock = time.perf_counter,
    on_progress: Progress | None = None,
) -> Run:
    """Time `rounds` rounds of random prompts, decoded greedily to exactly `output_tokens`.

    yardstick: what fractions are of. Raises RequestError when a request could not run on this
    executor.
    """
    engine = Engine(
        executor,
        EngineOptions(
            max_step_tokens=max_step_tokens, max_running=concurrency, max_waiting=concurrency
        ),
    )
    rng = np.random.default_rng(0)
    times = []
    for number in range(rounds):
        prompts = rng.integers(0, executor.vocab_size, (concurrency, prompt_tokens)).tolist()
        times.append(_round(engine, prompts, output_tokens, clock))
        if on_progress is not None:
            on_progress(number + 1, rounds, f"rounds of {concurrency} request(s)")
    return summarize(times, concurrency, prompt_tokens, output_tokens, yardstick)


def _round(
    engine: Engine, prompts: Sequence[Sequence[int]], output_tokens: int, clock: Clock
) -> _Times:
    greedy = SamplingParams(temperature=0.0)
    times = _Times(clock())
    for index, prompt in enumerate(prompts):
        engine.add(Request(f"bench-{index}", tuple(prompt), output_tokens, greedy))
    while engine.has_work:
        events = engine.step()
        now = clock()
        times.steps.append(now)
        for event in events:
            if event.error is not None:
                raise RuntimeError(f"a request failed while it was timed: {event.error}")
            times.tokens.setdefault(event.request_id, []).append(now)
    return times


def summarize(
    rounds: Sequence[_Times],
    concurrency: int,
    prompt_tokens: int,
    output_tokens: int,
    yardstick: Yardstick,
) -> Run:
    """Rates over the sum of all rounds; percentiles over everything in them."""
    requests = [(one.start, times) for one in rounds for times in one.tokens.values()]
    gaps = [times[i + 1] - times[i] for _, times in requests for i in range(len(times) - 1)]
    per_token = [(t[-1] - t[0]) / (len(t) - 1) for _, t in requests if len(t) > 1]
    prefill_seconds = sum(one.prefilled - one.start for one in rounds)
    decode_seconds = sum(one.end - one.prefilled for one in rounds)
    decoded = sum(one.decoded() for one in rounds)
    prompts = len(rounds) * concurrency * prompt_tokens
    prefill, decoding = _fractions(rounds, prompt_tokens, output_tokens, yardstick)
    tokens = len(rounds) * concurrency * (prompt_tokens + output_tokens)
    return Run(
        concurrency=concurrency,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        prefill_tokens_per_second=_rate(prompts, prefill_seconds),
        decode_tokens_per_second=_rate(decoded, decode_seconds),
        total_tokens_per_second=_rate(tokens, sum(one.end - one.start for one in rounds)),
        ttft_ms=_percentiles([times[0] - start for start, times in requests]),
        tpot_ms=_percentiles(per_token),
        itl_ms=_percentiles(gaps),
        prefill_fractions=prefill,
        decode_fractions=decoding,
        fraction_of_limit=decoding.limit,
    )


def _fractions(
    rounds: Sequence[_Times], prompt_tokens: int, output_tokens: int, yardstick: Yardstick
) -> tuple[Fractions, Fractions]:
    """Of prefill and of decoding."""
    requests = sum(len(one.tokens) for one in rounds)
    early = sum(one.drawn_before() for one in rounds)
    decoded = sum(one.decoded() for one in rounds)
    steps = sum(one.steps_before() for one in rounds)
    prefill = yardstick.fractions(
        steps=steps,
        # Tokens that came early were computed beside prompts, but for the first of each request.
        tokens=requests * prompt_tokens + early - requests,
        rows=early,
        context=prompt_tokens,
        seconds=sum(one.prefilled - one.start for one in rounds),
    )
    decoding = yardstick.fractions(
        steps=sum(len(one.steps) for one in rounds) - steps,
        tokens=decoded,
        rows=decoded,
        context=prompt_tokens + output_tokens / 2,
        seconds=sum(one.end - one.prefilled for one in rounds),
    )
    return prefill, decoding


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return dict.fromkeys(PERCENTILES, 0.0)
    values = np.percentile(np.asarray(seconds) * 1e3, list(PERCENTILES.values()))
    return dict(zip(PERCENTILES, map(float, values), strict=True))


def resident_bytes() -> int:
    """Bytes of memory that this process holds now; its peak where the system tells no more."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
