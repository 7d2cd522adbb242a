"""The layers of a run in order: taken from an unfinished run where that did the same, else done."""

import json
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from quant.calibration import CalibrationSet
from quant.layers import LayerLoop, round_layers_alone, round_tables_alone
from quant.preflight import Prepared
from quant.resume import ResumeStore, first_key, layer_keys
from quant.rounding_algorithms.result import LayerResult
from quant.skeleton import to_numpy
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
    room = store.directory if prepared.plan.spooled_bytes else None
    loop = LayerLoop(prepared.skeleton, prepared.source, tasks, settings, at_once, workers, room)
    keys = _keys(prepared, settings, calibration)
    done = 0
    for result in _finished(prepared, keys, store):
        yield result
        done += 1
    if done == len(keys) and tables.head is None:
        return
    loop.start(torch.from_numpy(calibration.tokens), table)
    begin = _take_up(loop, prepared, keys, done, store)
    saver = _StateSaver(store)
    for index in range(begin, len(keys)):
        result = loop.round_layer(index)
        store.save(index, keys[index], result)
        saver.offer(keys[index], loop)
        if index >= done:
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


def _take_up(
    loop: LayerLoop, prepared: Prepared, keys: list[str], count: int, store: ResumeStore
) -> int:
    """Bring the activations to one of `count` finished layers; returns the first one to do again.

    Kept activations are the very ones of the run that was cut off. Without them, those before the
    first changed layer come out of the stored numbers once more.
    """
    for index in reversed(range(count)):
        state = store.load_state(keys[index])
        if state is not None:
            for name, values in _state(loop).items():
                np.copyto(values, state[name])
            return index + 1
    for index, result in enumerate(_finished(prepared, keys[:count], store)):
        loop.replay_layer(index, result)
    return count


def _finished(prepared: Prepared, keys: list[str], store: ResumeStore) -> Iterator[LayerResult]:
    for index, key in enumerate(keys):
        result = store.load(index, key, prepared.resolution.tasks)
        if result is None:
            return
        yield result


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
    """Views of the activations."""
    state = {"hidden": to_numpy(loop.hidden)}
    if loop.exact is not None:
        state["exact"] = to_numpy(loop.exact)
    return state
