"""The layers of a run in order: taken from an unfinished run where that did the same, else done."""

import json
import time
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from quant.calibration import CalibrationSet
from quant.layers import LayerLoop, round_layers_alone, round_tables_alone
from quant.preflight import Prepared
from quant.resume import ResumeStore, first_key, layer_keys
from quant.rounding_algorithms.result import LayerResult
from quant.skeleton import to_torch
from quant.tasks import RoundingSettings
from quant.workers import Workers

STATE_SHARE = 0.05
_FIRST_SAVE_SECONDS = 3.0


def layer_results(
    prepared: Prepared,
    settings: RoundingSettings,
    calibration: CalibrationSet | None,
    store: ResumeStore,
    workers: Workers,
) -> Iterator[LayerResult]:
    """The token table's result if that is rounded, each decoder layer's, and the head's.

    What is done is kept in `store` until the caller clears it.
    """
    tasks, tables = prepared.resolution.tasks, prepared.resolution.tables
    table = None
    if tables.embeddings is not None:
        rounded = round_tables_alone(prepared.source, [tables.embeddings], settings)
        table = rounded.rounded[tables.embeddings.module].dequantized
        yield rounded
    if calibration is None:
        yield from round_layers_alone(prepared.skeleton, prepared.source, tasks, settings)
        if tables.head is not None:
            yield round_tables_alone(prepared.source, [tables.head], settings)
        return
    at_once = prepared.plan.samples_per_batch
    loop = LayerLoop(prepared.skeleton, prepared.source, tasks, settings, at_once, workers)
    keys = _keys(prepared, settings, calibration)
    done = _finished(prepared, keys, store)
    yield from done
    if len(done) == len(keys) and tables.head is None:
        return
    loop.start(torch.from_numpy(calibration.tokens), table)
    begin, saver = _take_up(loop, keys, done, store), _StateSaver(store)
    for index in range(begin, len(keys)):
        result = loop.round_layer(index)
        store.save(index, keys[index], result)
        saver.offer(keys[index], loop)
        if index >= len(done):
            yield result
    if tables.head is not None:
        yield loop.round_head(tables.head)


class _StateSaver:
    """Keeps the activations now and then: they are large, and what is not kept can be computed.

    Saving takes at most `STATE_SHARE` of the time, whatever the disk.
    """

    def __init__(self, store: ResumeStore) -> None:
        self._store = store
        self._last = time.monotonic()
        self._took = _FIRST_SAVE_SECONDS

    def offer(self, key: str, loop: LayerLoop) -> None:
        """The activations behind the layer of `key`."""
        began = time.monotonic()
        if began - self._last < self._took / STATE_SHARE:
            return
        self._store.save_state(key, _state(loop))
        self._last = time.monotonic()
        self._took = self._last - began


def _take_up(loop: LayerLoop, keys: list[str], done: list[LayerResult], store: ResumeStore) -> int:
    """Bring the activations to a finished layer; returns the first layer that is still to do.

    Kept activations are the very ones of the run that was cut off. Without them, those before the
    first changed layer come out of the stored numbers once more.
    """
    for index in reversed(range(len(done))):
        state = store.load_state(keys[index])
        if state is not None:
            loop.hidden = to_torch(state["hidden"])
            loop.exact = to_torch(state["exact"]) if "exact" in state else None
            return index + 1
    for index, result in enumerate(done):
        loop.replay_layer(index, result)
    return len(done)


def _finished(prepared: Prepared, keys: list[str], store: ResumeStore) -> list[LayerResult]:
    tasks, done = prepared.resolution.tasks, list[LayerResult]()
    for index, key in enumerate(keys):
        result = store.load(index, key, tasks)
        if result is None:
            break
        done.append(result)
    return done


def _keys(prepared: Prepared, settings: RoundingSettings, calibration: CalibrationSet) -> list[str]:
    skeleton, source = prepared.skeleton, prepared.source
    parts: list[str | bytes] = [
        json.dumps([torch.__version__, np.__version__, prepared.plan.samples_per_batch]),
        json.dumps(source.config, sort_keys=True),
        repr(prepared.resolution.tables.embeddings),
        calibration.sha256,
    ]
    for name in skeleton.outer_parameters():
        parts += [name, source.load_raw(name).tobytes()]
    layers = [
        [f"{skeleton.layer_name(index)}.{name}" for name, _ in layer.named_parameters()]
        for index, layer in enumerate(skeleton.layers)
    ]
    tasks = prepared.resolution.tasks
    return layer_keys(first_key(parts), source, layers, tasks, settings)


def _state(loop: LayerLoop) -> dict[str, npt.NDArray[np.generic]]:
    state = {"hidden": _to_numpy(loop.hidden)}
    if loop.exact is not None:
        state["exact"] = _to_numpy(loop.exact)
    return state


def _to_numpy(tensor: torch.Tensor) -> npt.NDArray[np.generic]:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: npt.NDArray[np.generic] = tensor.numpy()
    return array
