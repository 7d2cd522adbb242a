"""The confined process: started by a pool, serves tasks until its socket closes.

Everything that a task needs is imported before the doors close; what it would open later, fails.
"""

import gc
import importlib
import socket
from typing import Any

from runtime.confined.limits import be_nice, bound_processor, bound_resources, close_doors
from runtime.confined.messages import Refused, receive, send


def main(descriptor: int, module: str, memory_bytes: int, niceness: int) -> None:
    """Serve the `TASKS` of `module` over the socket `descriptor`."""
    be_nice(niceness)
    link = socket.socket(fileno=descriptor)
    tasks = importlib.import_module(module).TASKS
    gc.freeze()
    bound_resources(memory_bytes)
    closed = close_doors()
    try:
        send(link, {"ready": True, "closed": closed})
        while True:
            _serve(link, tasks)
    except (EOFError, OSError):
        return


def _serve(link: socket.socket, tasks: Any) -> None:
    request = receive(link)
    bound_processor(request["seconds"])
    answer: dict[str, Any]
    try:
        answer = {"value": tasks[request["task"]](*request["arguments"])}
    except Refused as refusal:
        answer = {"refused": str(refusal), "kind": refusal.kind}
    except MemoryError:
        answer = {"refused": "it needs too much memory", "kind": "memory"}
    except RecursionError:
        answer = {"refused": "it is nested too deeply", "kind": "recursion"}
    except Exception as bug:
        answer = {"refused": f"{type(bug).__name__}: {bug}"[:500], "kind": "bug"}
    send(link, answer)
