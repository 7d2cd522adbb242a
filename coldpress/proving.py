"""Verification with logits: `compile` may not import the runtime, so it is handed an executor."""

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from coldpress.loading import AUTO, DEFAULT_MACHINE, Machine
from coldpress.schedule import PAGE_SIZE, ScheduleFacts, probe_of, run_mixed, run_plain
from quant.format.errors import UnsupportedModelError
from runtime.machine import available_memory_bytes

if TYPE_CHECKING:
    from compile.model import Model
    from compile.verify import VerifyReport


def verify(
    artifact: Path,
    *,
    against: Path | None = None,
    logits: bool = True,
    record: bool = False,
    machine: Machine = DEFAULT_MACHINE,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> "VerifyReport":
    """Digests; with `against`, every integer and, if `logits`, the logits of a fixed probe.

    The artifact runs the probe in its own engine as a server would, in a mixed schedule; the
    reference plainly, in the oracle where that is at hand (see `_reference_backend`). Both keep
    keys and values exactly unless `machine` names a type. record: keep the report in the artifact,
    listed in its manifest, if it has passed.
    """
    from compile.parity import record_parity
    from compile.verify import verify as check

    engines: list[str] = []
    facts: list[ScheduleFacts] = []
    unrun: set[str] = set()

    def logits_of(model: "Model", tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        probe, ours = probe_of(tokens), len(engines) % 2 == 1
        backend = _backend(model, machine) if ours else _reference_backend(model, machine)
        engines.append(backend)
        if ours and model.kind == "tensorrt" and backend != "tensorrt":
            unrun.add(f"the engine was not run: --backend {backend} ran what lies beside it")
        runs = replace(machine, backend=backend, exact=True)
        executor = runs.load(model, num_pages=probe.pages, page_size=PAGE_SIZE)
        try:
            if not ours and not model.program.rounded_inputs():
                return run_plain(executor, probe)
            found, ran = run_mixed(executor, probe)
            facts.append(ran)
            return found
        finally:
            executor.close()

    report = check(artifact, against, logits_of if logits else None, on_progress)
    if facts:
        pairs = zip(engines[::2], engines[1::2], strict=True)
        ran = [{"reference": first, "artifact": second} for first, second in pairs]
        logits_check, engine = (
            found and replace(found, schedule=asdict(facts[-1]), engines=names)
            for found, names in zip_longest((report.logits, report.engine), ran)
        )
        notes = (*report.notes, *unrun)
        report = replace(report, logits=logits_check, engine=engine, notes=notes)
    if record:
        record_parity(artifact, report)
    return report


def _reference_backend(model: "Model", machine: Machine) -> str:
    """The oracle, where torch is installed and half of the free memory holds its float32 weights.

    Not where inputs, keys or values are rounded: there two engines differ by whole steps, and only
    the same one tells whether the numbers are the same.
    """
    own = _backend(model, machine)
    floats = 4 * sum(math.prod(shape) for shape in model.program.weights().values())
    fits = 2 * floats <= (available_memory_bytes() or 0)
    installed = importlib.util.find_spec("torch") is not None
    chosen = machine.backend == AUTO and installed and fits
    rounds = model.program.rounded_inputs() or machine.kv_cache_type not in (AUTO, "float32")
    return "torch" if chosen and not rounds else own


def _backend(model: "Model", machine: Machine) -> str:
    """The asked one; by default the model's own, or torch for what the cpu backend cannot run, or
    ONNX Runtime for the graph that an engine was built from, where there is no GPU."""
    from runtime.executors.cpu import check_supported
    from runtime.executors.tensorrt.cuda import has_gpu
    from runtime.loading import resolve_backend

    backend = resolve_backend(model, machine.backend)
    if backend == "tensorrt" and machine.backend == AUTO and not has_gpu():
        return "onnx"
    if backend == "cpu" and machine.backend == AUTO:
        try:
            check_supported(model.program)
        except UnsupportedModelError:
            return "torch"
    return backend
