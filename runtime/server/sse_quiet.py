"""Comments in streams that are quiet for long, which keep proxies from giving them up. They are
legal, yet some clients take each line for data, so that nobody gets them unasked."""

import asyncio
from collections.abc import Callable

from runtime.server.sse import Feed

COMMENT = b": waiting\n\n"


class CommentedFeed:
    """`feed`, and a comment whenever it gave nothing for `seconds`."""

    def __init__(self, feed: Feed, seconds: float) -> None:
        self._feed = feed
        self._seconds = seconds
        self._notify: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False
        self.has_ended = False

    def begin(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._feed.begin(notify)
        self._wind_up()

    def take(self) -> bytes:
        data = self._feed.take()
        self.has_ended = self._feed.has_ended
        if not data and self._is_due and not self.has_ended:
            data = COMMENT
        if data:
            self._wind_up()
        return data

    def close(self) -> None:
        self._stop()
        self._feed.close()

    def _wind_up(self) -> None:
        self._stop()
        if self.has_ended:
            return
        self._is_due = False
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._tell)

    def _tell(self) -> None:
        self._is_due = True
        if self._notify is not None:
            self._notify()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def commented(feed: Feed, seconds: float | None) -> Feed:
    """The feed as it is where `seconds` is None."""
    return feed if seconds is None else CommentedFeed(feed, seconds)
