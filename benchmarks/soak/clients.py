"""The load: streamed answers, some of which nobody reads to their end, and bursts of them."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

LEAVING = 0.3
WORDS = ("the", "press", "stands", "in", "a", "corner", "and", "oil", "of", "last", "year")


@dataclass
class Books:
    """accepted: answers that began with status 200. outcomes: by what became of each client."""

    outcomes: Counter[str] = field(default_factory=Counter)
    accepted: int = 0


def new_client(url: str) -> httpx.AsyncClient:
    """A connection for each request, as many as there are requests."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, timeout=120, limits=limits)


async def capacity(url: str, seconds: float, streams: int = 8) -> float:
    """Requests of this kind that the server completes each second, nobody leaving."""
    random, done = Random(1), 0
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        end = time.monotonic() + seconds

        async def keep_asking() -> None:
            nonlocal done
            while time.monotonic() < end:
                answer = await http.post("/v1/completions", json=_body(random))
                done += answer.status_code == 200

        await asyncio.gather(*(keep_asking() for _ in range(streams)))
    return max(1, done) / seconds


async def load(
    http: httpx.AsyncClient, random: Random, books: Books, seconds: float, rate: float, burst: int
) -> None:
    """`rate` requests a second at random moments for so long, and in the middle of that `burst` at
    once; returns when all have ended."""
    start, clients = time.monotonic(), set[asyncio.Task[None]]()

    def ask(count: int) -> None:
        for _ in range(count):
            clients.add(asyncio.create_task(_client(http, random, books)))

    for end in (start + seconds / 2, start + seconds):
        while time.monotonic() < end:
            ask(1)
            await asyncio.sleep(random.expovariate(rate))
            clients -= {client for client in clients if client.done()}
        ask(burst if end < start + seconds else 0)
    await asyncio.gather(*clients)


def _body(random: Random, *, stream: bool = False) -> dict[str, Any]:
    prompt = " ".join(random.choices(WORDS, k=random.randint(3, 60)))
    return {"prompt": prompt, "max_tokens": random.randint(4, 32), "stream": stream}


async def _client(http: httpx.AsyncClient, random: Random, books: Books) -> None:
    """One streamed answer, read to its end or left after a random number of events."""
    leave_after = random.randint(0, 20) if random.random() < LEAVING else None
    body, events = _body(random, stream=True), 0
    try:
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                books.outcomes[str(answer.status_code)] += 1
                return
            books.accepted += 1
            async for line in answer.aiter_lines():
                events += line.startswith("data: ")
                if leave_after is not None and events > leave_after:
                    books.outcomes["left"] += 1
                    return
                if line.startswith('data: {"error"'):
                    books.outcomes["error"] += 1
                    return
        books.outcomes["complete"] += 1
    except httpx.HTTPError as error:
        books.outcomes[type(error).__name__] += 1
