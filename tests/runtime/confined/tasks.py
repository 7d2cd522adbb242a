"""Tasks that behave badly, each in its own way."""

import os
import socket
import subprocess
import threading
from typing import Any

from runtime.confined.messages import Refused


def spin() -> None:
    while True:
        pass


def swell(megabytes: int) -> int:
    return len(b"x" * (megabytes << 20))


def tell_parents_files(path: str) -> str:
    with open(path, encoding="utf-8") as file:  # noqa: PTH123  the plainest way in is what is tried
        return file.read()


def connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), timeout=1)


def run_program() -> None:
    subprocess.run(["/bin/true"], check=True)


def think_on_a_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(7))
    thread.start()
    thread.join()
    return found[0]


def recurse() -> None:
    recurse()


def refuse() -> None:
    raise Refused("no, thank you", "polite")


def fail() -> None:
    raise KeyError("a bug")


TASKS: dict[str, Any] = {
    "echo": lambda value: value,
    "pid": os.getpid,
    "kill_itself": lambda: os._exit(3),
    "spin": spin,
    "swell": swell,
    "read": tell_parents_files,
    "connect": connect,
    "run_program": run_program,
    "thread": think_on_a_thread,
    "recurse": recurse,
    "refuse": refuse,
    "fail": fail,
}
