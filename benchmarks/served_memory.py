"""What a server holds in memory beside its weights and its pool of pages.

`python -m benchmarks.served_memory ARTIFACT [--kv-cache 64MB] [--json]`

The server answers one request that fills its context, or 2,000 tokens of it. What it and its
children then hold, each shared page counted in part (Pss), may be the packed weights, the whole
pool and 150 MB more. Then it answers one that is held to a grammar, for which it reads the
vocabulary once more, and is measured again; what grammars take is part of the 150 MB as well. The
weights are counted by packing them here once more.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from coldpress.loading import Machine, open_artifact, open_executor
from coldpress.options import size_bytes

MORE_BYTES = 150_000_000
PROMPT = 2000


@contextmanager
def server(artifact: Path, pool: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Its process, and what it said when it was ready."""
    command = ["-m", "coldpress", "--json", "serve", str(artifact), "--port", "0"]
    command += ["--name", "model", "--kv-cache", str(pool)]
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            text, ready = "", None
            while ready is None:
                line = process.stdout.readline()
                assert line, f"the server ended: {text}"
                text += line
                try:
                    ready = json.loads(text)
                except ValueError:
                    continue
            yield process.pid, ready
        finally:
            process.send_signal(signal.SIGTERM)


def held_bytes(pid: int) -> int:
    """Of a process and all below it."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.M)
    assert match, "the system does not tell what a process holds"
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return 1024 * int(match[1]) + sum(held_bytes(child) for child in children)


def ask(url: str, tokens: int, **more: Any) -> None:
    body = {
        "model": "model",
        "prompt": [5 + i % 50 for i in range(tokens)],
        "max_tokens": 4,
        **more,
    }
    headers = {"content-type": "application/json"}
    with urlopen(Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)) as answer:
        assert json.load(answer)["usage"]["prompt_tokens"] == tokens


def measure(artifact: Path, pool: int) -> dict[str, int]:
    """Bytes held, those of the weights and the pool, and what is left: `more`."""
    executor = open_executor(open_artifact(artifact)[0], Machine(), tokens=2)
    weights = executor.weight_bytes
    executor.close()
    with server(artifact, pool) as (pid, ready):
        longest = min(PROMPT, ready["context"] - 8)
        ask(ready["url"], longest)
        plain = held_bytes(pid) - weights - pool
        ask(ready["url"], longest, structured_outputs={"regex": "[a-z]{8}"})
        held = held_bytes(pid)
    more = held - weights - pool
    return {"held": held, "weights": weights, "pool": pool, "plain": plain, "more": more}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--kv-cache", default="64MB", type=size_bytes)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = measure(asked.artifact, asked.kv_cache)
    if asked.json:
        print(json.dumps(found))
    else:
        print(", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in found.items()))
    sys.exit(found["more"] > MORE_BYTES)


if __name__ == "__main__":
    main()
