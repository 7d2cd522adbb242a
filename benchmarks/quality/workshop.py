"""Runs commands one at a time, measures them, and never runs the same one twice.

A command is known by what it says and by what is in the files that it names, so an interrupted run
goes on where it was, and a changed tool, text or model redoes exactly what depends on it.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAYLOAD = (".safetensors", ".gguf", ".npy", ".npz", ".txt", "config.json", "tokenizer.json")
READERS = "read_"
"""Steps with such names compute scores."""
LOG_LINES = 3
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Made:
    """A file or a directory, and the SHA-256 of what matters in it."""

    path: Path
    digest: str


@dataclass(frozen=True)
class Tool:
    """An interpreter, and what is installed there as far as it can change a result."""

    python: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Done:
    """A command that ran. seconds: wall clock; cpu_seconds: of all its threads and children.

    load: the machine's load average when it began, since others' work makes seconds longer.
    digest: of what it wrote. problem: the log's last lines where it failed.
    """

    name: str
    directory: str
    seconds: float
    cpu_seconds: float
    peak_mib: float
    load: float
    digest: str
    problem: str | None = None

    @property
    def output(self) -> Path:
        return Path(self.directory) / "out"

    def made(self, name: str = "") -> Made:
        """What it wrote, or one file of that."""
        return Made(self.output / name, f"{self.digest}/{name}")


@dataclass(frozen=True)
class Workshop:
    """root: where everything is kept. threads: of each command, and processors it may use."""

    root: Path
    threads: int

    def run(self, name: str, tool: Tool, step: str, args: Sequence[str | Made]) -> Done:
        """`python -m benchmarks.quality.steps.STEP OUT ARGS`, unless it was done before.

        A failure is told in the result, and tried again in the next run.
        """
        directory = self.root / "jobs" / f"{name.replace(' ', '-')}-{_key(tool, step, args)}"
        finished = directory / "done.json"
        if finished.is_file():
            return Done(**(json.loads(finished.read_text("utf-8")) | {"directory": str(directory)}))
        shutil.rmtree(directory, ignore_errors=True)
        (directory / "out").mkdir(parents=True)
        words = [str(arg.path) if isinstance(arg, Made) else arg for arg in args]
        module = f"benchmarks.quality.steps.{step}"
        done = self._measure(
            name, directory, [tool.python, "-m", module, str(directory / "out"), *words]
        )
        if done.problem is None:
            _write_atomically(finished, json.dumps(asdict(done), indent=1))
        return done

    def _measure(self, name: str, directory: Path, command: Sequence[str]) -> Done:
        log = directory / "log.txt"
        load, start = os.getloadavg()[0], time.monotonic()
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment(),
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                _, status, usage = os.wait4(process.pid, 0)
            except BaseException:
                # Left alone it would take its time from the run that goes on here.
                os.killpg(process.pid, signal.SIGKILL)
                raise
        # wait4 has reaped it already; without this Popen would report it as lost.
        process.returncode = os.waitstatus_to_exitcode(status)
        failed = process.returncode != 0
        return Done(
            name=name,
            directory=str(directory),
            seconds=time.monotonic() - start,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_mib=usage.ru_maxrss / 1024,
            load=load,
            digest="" if failed else digest(directory / "out"),
            problem=_last_lines(log, process.returncode) if failed else None,
        )

    def _environment(self) -> dict[str, str]:
        threads = dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"),
            str(self.threads),
        )
        settings = {
            "OMP_WAIT_POLICY": "PASSIVE",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return {**os.environ, **threads, **settings}


def bind_to_processors(count: int) -> None:
    """Let this process and its children use `count` processors: a limit that no tool can miss."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[:count])


def inspect_tool(python: str) -> Tool:
    """What `python` has installed. Raises ValueError when it does not run."""
    command = [python, "-m", "benchmarks.quality.steps.identity"]
    try:
        told = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{python}: is not a Python that runs here ({error})") from error
    return Tool(python, json.loads(told.stdout))


@cache
def digest(path: Path) -> str:
    """SHA-256 of a file; of a directory, its weights, arrays, texts and configs by name."""
    total = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file() and (file == path or file.name.endswith(PAYLOAD)):
            total.update(file.relative_to(path).as_posix().encode() + b"\0")
            with file.open("rb") as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    total.update(chunk)
    return total.hexdigest()


def given(path: Path) -> Made:
    """A file or directory of the user's."""
    return Made(path.resolve(), digest(path.resolve()))


def _key(tool: Tool, step: str, args: Sequence[str | Made]) -> str:
    here = Path(__file__).parent
    words = [arg.digest if isinstance(arg, Made) else arg for arg in args]
    reads = step.startswith(READERS)
    code = [digest(here / "steps" / f"{step}.py"), *([digest(here / "scores.py")] if reads else [])]
    told = json.dumps([dict(tool.versions), step, code, words], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _last_lines(log: Path, code: int) -> str:
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return f"exit code {code}: {' / '.join(lines[-LOG_LINES:])[-400:]}"


def _write_atomically(path: Path, text: str) -> None:
    aside = path.with_suffix(".part")
    aside.write_text(text, "utf-8")
    aside.rename(path)
