"""The layer loop: one decoder layer in memory at a time, each seeing what its predecessors, already
rounded, produce.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from quant.activations import empty_activations
from quant.capture import capture_inputs, final_states
from quant.format.tensor import WeightSource
from quant.layer_turn import LayerTurn, batches_of
from quant.rounding_algorithms.dispatch import StageMoments, round_alone, round_stage
from quant.rounding_algorithms.result import LayerResult
from quant.skeleton import Skeleton, load_float, loaded, to_dtype
from quant.statistics import InputMoments
from quant.tasks import LinearTask, RoundingSettings
from quant.transforms.layouts import residual_norms
from quant.workers import Workers


class LayerLoop:
    """The activations of the calibration set between layers, and the layers in turn.

    A layer's weights are loaded before its turn and gone after it; only the activations are carried
    along. More samples than `samples_at_once` pass a layer once for each of its stages, and once
    more.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        source: WeightSource,
        tasks: Mapping[str, LinearTask],
        settings: RoundingSettings,
        samples_at_once: int,
        workers: Workers,
        directory: Path | None = None,
    ) -> None:
        """directory: where the activations lie in files; None: in memory."""
        self._directory = directory
        self._skeleton = skeleton
        self._source = source
        self._tasks = tasks
        self._settings = settings
        self._samples_at_once = samples_at_once
        self._workers = workers
        corrected = any(task.corrected for task in tasks.values())
        model_type = str(skeleton.model.config.get_text_config().model_type)
        self._residuals = residual_norms(model_type) if corrected else {}

    def start(self, tokens: torch.Tensor, table: torch.Tensor | None = None) -> None:
        """tokens: int64 [samples, tokens], without padding. table: the token table as it will be
        stored, where that is rounded."""
        skeleton = self._skeleton
        corrected = any(task.corrected for task in self._tasks.values())
        with self._outer_loaded():
            self.hidden, self._arguments = capture_inputs(skeleton, tokens, self._directory)
            self.exact = None
            if corrected:
                shape, dtype = tuple(self.hidden.shape), self.hidden.dtype
                self.exact = empty_activations(shape, dtype, self._directory).copy_(self.hidden)
            if table is not None:
                skeleton.model.get_input_embeddings().weight.data.copy_(table)
                capture_inputs(skeleton, tokens, into=self.hidden)

    def round_head(self, task: LinearTask) -> LayerResult:
        """Round the output head, when all layers are done."""
        skeleton, weight = self._skeleton, load_float(self._source, f"{task.module}.weight")
        share = self._settings.first_token_share
        moments = InputMoments(skeleton.hidden_size, share, self._workers, task.corrected)
        with self._outer_loaded():
            for wave in zip(
                torch.split(self.hidden, self._samples_at_once),
                torch.split(
                    self.hidden if self.exact is None else self.exact, self._samples_at_once
                ),
                strict=True,
            ):
                inputs, exact = (
                    [final_states(skeleton, batch) for batch in batches_of(hidden)]
                    for hidden in wave
                )
                moments.add(inputs, exact if task.corrected else None)
        weights = {task.module: weight.float()}
        stage = StageMoments(moments.hessian(), moments.cross(), moments.tokens, moments.absmax)
        return LayerResult(round_stage([task], weights, stage, self._settings, self._workers))

    @contextmanager
    def _outer_loaded(self) -> Iterator[None]:
        outer = {name: name for name in self._skeleton.outer_parameters()}
        with loaded(self._skeleton.model, outer, self._source, self._skeleton.compute_dtype):
            yield

    def round_layer(self, index: int) -> LayerResult:
        """Round the linears of a layer; the activations become those behind it."""
        with self._loaded(index) as turn:
            turn.run(self.hidden, self.exact, self._samples_at_once)
        return LayerResult(turn.results, turn.changed, turn.added)

    def replay_layer(self, index: int, result: LayerResult) -> None:
        """Move the activations through a layer that was rounded before."""
        with self._loaded(index) as turn:
            turn.replay(result, self.hidden, self.exact, self._samples_at_once)

    @contextmanager
    def _loaded(self, index: int) -> Iterator[LayerTurn]:
        layer, prefix = self._skeleton.layers[index], self._skeleton.layer_name(index)
        names = {name: f"{prefix}.{name}" for name, _ in layer.named_parameters()}
        stored = {name: to_dtype(self._source.scheme(full)) for name, full in names.items()}
        with loaded(layer, names, self._source, self._skeleton.compute_dtype):
            yield LayerTurn(
                layer,
                prefix,
                self._arguments[index],
                self._tasks,
                self._settings,
                self._workers,
                stored,
                self._residuals,
            )


def round_layers_alone(
    skeleton: Skeleton,
    source: WeightSource,
    tasks: Mapping[str, LinearTask],
    settings: RoundingSettings,
) -> Iterator[LayerResult]:
    """Each layer rounded without calibration: weights as they are."""
    for index in range(len(skeleton.layers)):
        prefix = f"{skeleton.layer_name(index)}."
        mine = [task for name, task in tasks.items() if name.startswith(prefix)]
        weights = {t.module: load_float(source, f"{t.module}.weight").float() for t in mine}
        yield LayerResult(round_alone(mine, weights, settings))


def round_tables_alone(
    source: WeightSource, tasks: Sequence[LinearTask], settings: RoundingSettings
) -> LayerResult:
    """The token table or the head, rounded without calibration."""
    weights = {t.module: load_float(source, f"{t.module}.weight").float() for t in tasks}
    return LayerResult(round_alone(tasks, weights, settings))
