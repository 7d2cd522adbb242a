"""Processes that end in the middle of what they do, as kill -9 ends them.

They are forked from one that has imported torch and transformers, which would take each of them
seconds of its own.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

_STDERR = 2
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        "tests.ended",
        "transformers.conversion_mapping",
        "transformers.models.auto.modeling_auto",
        "transformers.models.llama.modeling_llama",
        "quant.run",
        "coldpress.pressing",
    ]
)


@dataclass(frozen=True)
class Ending:
    """A process gets `by` as it calls `call` of `module` for the `count`th time. torn: the file
    that the call would have written, its second argument, is half written by then."""

    module: str
    call: str
    count: int = 1
    by: signal.Signals = signal.SIGKILL
    torn: bool = False

    def prepare(self) -> None:
        """Of this process."""
        # A shell that runs the tests in the background has told them to ignore the interrupt.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        *path, name = self.call.split(".")
        owner: Any = import_module(self.module)
        for part in path:
            owner = getattr(owner, part)
        real, calls = getattr(owner, name), 0

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.count:
                if self.torn:
                    Path(args[1]).write_bytes(b"torn")
                os.kill(os.getpid(), self.by)
            return real(*args, **kwargs)

        setattr(owner, name, call)


def exit_code(task: Callable[..., None], *args: Any) -> int | None:
    """Of a process that does `task`, a function at the top of a module, and nothing else: the
    signal that ended it, negative; None where it has not ended within five minutes."""
    process = _PROCESSES.Process(target=task, args=args)
    process.start()
    process.join(300)
    code = process.exitcode
    process.kill()
    process.join()
    process.close()
    return code


def command_exit_code(ending: Ending, args: Sequence[str], stderr: Path) -> int | None:
    """Of `coldpress ARGS`, with what it says in a file."""
    return exit_code(_run_command, ending, list(args), stderr)


def _run_command(ending: Ending, args: list[str], stderr: Path) -> None:
    from coldpress.cli import run

    with stderr.open("wb") as file:
        os.dup2(file.fileno(), _STDERR)
    ending.prepare()
    sys.exit(run(args))
