"""News from other threads, told to an event loop in bulk."""

import asyncio
import threading

from runtime.server.wakeups import Wakeups, wakeups


def test_a_burst_wakes_the_loop_once() -> None:
    async def scenario() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        told: list[int] = []
        calls: list[object] = []
        real = loop.call_soon_threadsafe

        def counted(callback: object) -> object:
            calls.append(callback)
            return real(callback)  # type: ignore[arg-type]

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign, assignment]
        bell = wakeups()
        assert bell is wakeups(), "one of each loop"

        def burst() -> None:
            for number in range(100):
                bell.call_soon(lambda number=number: told.append(number))  # type: ignore[misc]

        # The loop stands still meanwhile, as it does while it works on something else.
        thread = threading.Thread(target=burst)
        thread.start()
        thread.join()
        while len(told) < 100:
            await asyncio.sleep(0)
        assert told == list(range(100))
        return len(calls), len(told)

    assert asyncio.run(scenario()) == (1, 100)


def test_nothing_is_lost_between_threads() -> None:
    async def scenario() -> int:
        bell = wakeups()
        told: list[int] = []

        def chatter() -> None:
            for number in range(2000):
                bell.call_soon(lambda: told.append(0))
                if number % 50 == 0:
                    threading.Event().wait(0.0005)

        threads = [threading.Thread(target=chatter) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) or len(told) < 8000:
            await asyncio.sleep(0.001)
        return len(told)

    assert asyncio.run(asyncio.wait_for(scenario(), 20)) == 8000


def test_a_loop_that_has_ended_is_no_error() -> None:
    loop = asyncio.new_event_loop()
    bell = Wakeups(loop)
    loop.close()
    bell.call_soon(lambda: None)
