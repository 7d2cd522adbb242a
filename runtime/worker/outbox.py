"""The worker's end of the socket for what it says: a step does not wait for the front."""

import socket
import threading

from runtime.worker.messages import ToFront, frame_of


class Outbox:
    """`send` may be called from any thread."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._late = b""
        """What the front has not taken yet."""

    def send(self, message: ToFront, *, wait: bool = True) -> None:
        """Say it after all that was said before. Without `wait`, what the front does not take now
        goes with the next message; OSError once there is no front."""
        data = frame_of(message)
        with self._lock:
            data = self._late + data if self._late else data
            self._late = b""
            if wait:
                self._end.sendall(data)
            else:
                self._late = data[self._taken(data) :]

    def _taken(self, data: bytes) -> int:
        try:
            return self._end.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
