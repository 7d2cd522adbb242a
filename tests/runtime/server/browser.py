"""Headless Chromium, driven over its DevTools protocol through a pipe; no driver, no port."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--disable-component-update",
    "--disable-background-networking",
    "--no-first-run",
    "--no-proxy-server",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_LAUNCH = """import os, sys
for source, target in zip(sys.argv[1:3], (3, 4)):
    os.dup2(int(source), target)
os.execv(sys.argv[3], sys.argv[3:])"""
"""Chromium reads commands from descriptor 3 and answers on 4."""
PATIENCE = 60.0
"""Seconds that a browser on a machine full of other work may take for anything."""


def chromium() -> str | None:
    """The path of a Chromium, if there is one."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. `problems` are uncaught errors and whatever the browser complains about."""

    def __init__(self, wire: "_Wire", session: str) -> None:
        self._wire = wire
        self._session = session
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    @property
    def problems(self) -> list[str]:
        return self._wire.problems

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._wire.call(method, params, self._session)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, expression: str) -> Any:
        """What an expression is, as JSON; promises are awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """The first value of an expression that is true."""
        deadline = time.monotonic() + PATIENCE
        while not (found := self.value(expression)):
            assert time.monotonic() < deadline, f"still not true: {expression}; {self.problems}"
            time.sleep(0.05)
        return found

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        text = "\r" if key == "Enter" and not modifiers else ""
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, selector: str) -> None:
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def look(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """Size and colours of the screen."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browsing(path: str) -> Iterator[Page]:
    """A tab of the Chromium at `path`, with a profile of its own."""
    commands, answers = os.pipe(), os.pipe()
    # Above 9, so that neither is overwritten while the other becomes 3 or 4.
    theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (commands[0], answers[1])]
    with TemporaryDirectory(prefix="coldpress-browser-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            (
                *(sys.executable, "-c", _LAUNCH, *map(str, theirs)),
                *(path, *_FLAGS, f"--user-data-dir={profile}"),
            ),
            pass_fds=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (*theirs, commands[0], answers[1]):
            os.close(fd)
        wire = _Wire(answers[0], commands[1])
        try:
            target = wire.call("Target.createTarget", {"url": "about:blank"})["targetId"]
            attached = {"targetId": target, "flatten": True}
            yield Page(wire, wire.call("Target.attachToTarget", attached)["sessionId"])
        finally:
            wire.close()
            process.kill()
            process.wait()


class _Wire:
    """Commands and their answers, each a JSON object that ends with a zero byte."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._buffer = b""
        self._count = 0
        self.problems: list[str] = []

    def call(
        self, method: str, params: dict[str, Any], session: str | None = None
    ) -> dict[str, Any]:
        self._count += 1
        number = self._count
        command = {"id": number, "method": method, "params": params}
        if session is not None:
            command["sessionId"] = session
        os.write(self._writer, json.dumps(command).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            message = self._next(deadline)
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reader], [], [], deadline - time.monotonic())
            assert ready, "Chromium does not answer"
            data = os.read(self._reader, 1 << 20)
            assert data, "Chromium has ended"
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(str(details.get("exception", {}).get("description", details)))
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])
