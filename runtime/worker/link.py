"""The front's end of a worker's socket: sending never waits, whatever the worker does."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from runtime.worker.messages import FrameReader, ToFront, ToWorker, frame_of, news_of

_READ_BYTES = 64 * 1024
_BUFFER_BYTES = 1024 * 1024


class Link:
    """`send` may be called from any thread, an event loop's included; `news` belongs to one."""

    def __init__(self, end: socket.socket) -> None:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._end = end
        # A timeout belongs to the Python object: reading has one, sending must not wait for it.
        self._out = end.dup()
        self._out.settimeout(None)
        self._lock = threading.Lock()
        self._backlog: SimpleQueue[bytes | None] | None = None
        self._helper: threading.Thread | None = None

    def send(self, message: ToWorker) -> None:
        """Hand over a message, or leave it to a thread where the worker does not read just now.
        What a dead worker does not take is dropped: `news` ends then, and tells."""
        frame = frame_of(message)
        with self._lock:
            if self._backlog is None:
                sent = self._send_now(frame)
                if sent == len(frame):
                    return
                frame = frame[sent:]
                self._backlog = SimpleQueue()
                self._helper = threading.Thread(
                    target=self._work_off, args=(self._backlog,), daemon=True
                )
                self._helper.start()
            self._backlog.put(frame)

    def news(self, seconds: float, on_silence: Callable[[], None]) -> Iterator[ToFront]:
        """What the worker says, until its end of the socket is closed. `on_silence` is called
        whenever it has said nothing for `seconds`. ProtocolError for what is no message."""
        frames = FrameReader()
        self._end.settimeout(seconds)
        buffer = memoryview(bytearray(_READ_BYTES))
        while True:
            try:
                count = self._end.recv_into(buffer)
            except TimeoutError:
                on_silence()
                continue
            except OSError:
                return
            if not count:
                return
            yield from map(news_of, frames.feed(buffer[:count]))

    def hang_up(self) -> None:
        """The worker ends as soon as it notices. From any thread; `news` ends too."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            if self._backlog is not None:
                self._backlog.put(None)

    def close(self) -> None:
        """Give the descriptors back; nobody is in `news` any more."""
        self.hang_up()
        if self._helper is not None:
            self._helper.join()
        self._end.close()
        self._out.close()

    def _send_now(self, frame: bytes) -> int:
        try:
            return self._out.send(frame, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            return len(frame)

    def _work_off(self, backlog: "SimpleQueue[bytes | None]") -> None:
        while (frame := backlog.get()) is not None:
            try:
                self._out.sendall(frame)
            except OSError:
                return
