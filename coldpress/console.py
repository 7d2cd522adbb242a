"""What people and machines see: results on stdout; progress, notes and errors on stderr."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from coldpress.jsonable import to_jsonable
from coldpress.progress import ProgressReporter


class Console:
    """Where one run of the command line writes. `json` decides the form of the result."""

    def __init__(self) -> None:
        self.json = False
        self._emitted = False
        self._notes: list[str] = []

    def result(self, value: Any, render: Callable[[], Any]) -> None:
        """Print the command's one result: `value` as JSON, or what `render()` returns for people.

        `render` returns a string or anything that rich can print.
        """
        self._emitted = True
        if self.json:
            plain = to_jsonable(value)
            if self._notes and isinstance(plain, dict):
                plain = {"notes": self._notes} | plain
            click.echo(json.dumps(plain, ensure_ascii=False))
            return
        shown = render()
        if isinstance(shown, str):
            click.echo(shown)
        else:
            from rich.console import Console as RichConsole

            # In a file or a pipe nothing is gained by folding lines to a window's width.
            RichConsole(width=None if sys.stdout.isatty() else 160).print(shown)

    def note(self, text: str) -> None:
        """One line of news for people, on stderr. What begins with "note: ", machines find in the
        result's "notes" too."""
        if text.startswith("note: "):
            self._notes.append(text.removeprefix("note: "))
        click.echo(text, err=True)

    def error(self, sentence: str, code: int) -> None:
        """Say what went wrong; a machine that got no result gets the sentence as JSON."""
        if self.json and not self._emitted:
            click.echo(json.dumps({"error": sentence, "exit_code": code}, ensure_ascii=False))
        click.echo(f"error: {sentence}", err=True)

    @contextmanager
    def progress(self, title: str) -> Iterator[ProgressReporter]:
        """A callback `(done, total, what)` that draws a bar, or prints lines off a terminal."""
        reporter = ProgressReporter(title)
        try:
            yield reporter
        finally:
            reporter.close()
