"""What each key has used, and when it has used too much."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import ceil

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime.server.errors import ApiError
from runtime.server.keys import ApiKey, KeyRing
from runtime.server.record import RequestRecord

_MINUTE = 60.0


@dataclass
class Bucket:
    """Refills by `per_minute`, up to a minute's worth; may be overdrawn, by what is known only
    afterwards."""

    per_minute: int
    level: float
    filled: float

    def seconds_until(self, amount: float, now: float) -> float:
        """How long until `amount` is there; 0 where it is."""
        rate = self.per_minute / _MINUTE
        self.level = min(self.per_minute, self.level + (now - self.filled) * rate)
        self.filled = now
        return max(0.0, (amount - self.level) / rate)


@dataclass(eq=False)
class KeyUse:
    """Of one key since the start."""

    key: ApiKey
    requests: Bucket | None = None
    tokens: Bucket | None = None
    running: int = 0
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("requests", "refused", "prompt_tokens", "answer_tokens"), 0
        )
    )


class KeyLimits:
    """Lets requests of a key in, or says when to come back; on the event loop's thread alone."""

    def __init__(self, ring: KeyRing, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        now = clock()
        self.uses = {key.name: _use(key, now) for key in ring.keys}

    def enter(self, key: ApiKey) -> None:
        """Count a request. Raises ApiError 429 where the key has used up one of its limits."""
        use, now = self.uses[key.name], self._clock()
        if key.concurrent is not None and use.running >= key.concurrent:
            self._refuse(use, f"{key.concurrent} requests at once", 1.0)
        if use.tokens is not None and (wait := use.tokens.seconds_until(1, now)) > 0:
            self._refuse(use, f"{key.tokens_per_minute} tokens per minute", wait)
        if use.requests is not None:
            if (wait := use.requests.seconds_until(1, now)) > 0:
                self._refuse(use, f"{key.requests_per_minute} requests per minute", wait)
            use.requests.level -= 1
        use.running += 1
        use.counts["requests"] += 1

    def leave(self, record: RequestRecord) -> None:
        """The request is answered, or its client is gone: what it cost is counted."""
        assert record.key is not None
        use = self.uses[record.key.name]
        use.running -= 1
        use.counts["prompt_tokens"] += record.prompt_tokens
        use.counts["answer_tokens"] += record.answer_tokens
        if use.tokens is not None:
            use.tokens.seconds_until(0, self._clock())
            use.tokens.level -= record.prompt_tokens + record.answer_tokens

    def _refuse(self, use: KeyUse, limit: str, seconds: float) -> None:
        use.counts["refused"] += 1
        raise ApiError(
            429,
            f"this API key may have {limit}; try again later",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(max(1, ceil(seconds)))},
        )


class KeyFamilies(Collector):
    """Counters by the name of the key, for /metrics."""

    def __init__(self, limits: KeyLimits) -> None:
        self._limits = limits

    def collect(self) -> Iterator[Metric]:
        uses = self._limits.uses
        for what in next(iter(uses.values())).counts:
            family = CounterMetricFamily(
                f"coldpress_key_{what}", f"{what} by API key.", labels=["key"]
            )
            for name, use in uses.items():
                family.add_metric([name], use.counts[what])
            yield family
        running = GaugeMetricFamily(
            "coldpress_key_running", "Requests in progress by API key.", labels=["key"]
        )
        for name, use in uses.items():
            running.add_metric([name], use.running)
        yield running


def _use(key: ApiKey, now: float) -> KeyUse:
    def bucket(per_minute: int | None) -> Bucket | None:
        return None if per_minute is None else Bucket(per_minute, per_minute, now)

    return KeyUse(key, bucket(key.requests_per_minute), bucket(key.tokens_per_minute))
