"""CudaExecutor: Triton kernels over device memory; decode steps are replayed as CUDA graphs."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compile.model import Model
from compile.program import Attend
from quant.format.errors import InputError
from quant.format.kv_cache import kv_cache_of, kv_scales_of
from quant.format.tensor import WeightSource
from runtime.engine.batch import Follows, PlainDraw, StepBatch
from runtime.executors.cuda.arrays import StepArrays, step_arrays
from runtime.executors.cuda.building import OtherRanks, OverRanks
from runtime.executors.cuda.draws import draw
from runtime.executors.cuda.graphs import DecodeGraphs, Recorder, is_decode
from runtime.executors.cuda.lowering import lower
from runtime.executors.cuda.memory import check_capability, check_e4m3, require_gpu
from runtime.executors.cuda.staging import InFlight, Staging
from runtime.executors.cuda.values import HIDDEN, Run
from runtime.executors.cuda.weights import DeviceWeights, Placement
from runtime.kernels.triton.cache import CacheNumber, LayerCache, make_cache
from runtime.kernels.triton.edits import hand_over

Dtype = Literal["float32", "float16", "bfloat16"]


class CudaExecutor:
    """Implements `runtime.engine.batch.Executor` on an NVIDIA GPU.

    device: "cuda", or "cpu" for Triton's interpreter. dtype: of activations and of weights that are
    not integers. cache: of keys and values; None is what the
    checkpoint holds scales for, else `dtype`. recorder: how decode steps are kept
    and replayed; None runs each kernel by kernel. sum_ranks, max_ranks: see `OtherRanks`.

    Sums are float32; their order follows the shapes of the step, so that a row's last bits may
    depend on its company.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_pages: int,
        page_size: int = 32,
        device: str = "cuda",
        dtype: Dtype = "bfloat16",
        cache: CacheNumber | None = None,
        recorder: Recorder | None = None,
        sum_ranks: OverRanks | None = None,
        max_ranks: OverRanks | None = None,
    ) -> None:
        assert num_pages > 1, "page 0 is reserved: a pool has two pages or more"
        if page_size < 16 or page_size & (page_size - 1):
            raise InputError(
                f"the cuda backend has no pages of {page_size} tokens; use 16, 32, 64 or 128"
            )
        self._device = _device(device)
        self._staging = Staging(self._device)
        program = model.program
        sizes = program.sizes
        self.vocab_size, self.max_positions = sizes.vocab_size, sizes.max_positions
        self.page_size, self.num_pages = page_size, num_pages
        self._heads = (sizes.heads, sizes.kv_heads)
        held = cache or stored_number(model.weights) or dtype
        if self._device.type == "cuda":
            capability = torch.cuda.get_device_capability(self._device)
            check_capability(capability)
            check_e4m3(program, held, capability)
        placement = Placement(self._device, getattr(torch, dtype))
        weights = DeviceWeights(model.weights, placement)
        layers = sorted(
            (op for op in program.ops if isinstance(op, Attend)), key=lambda op: op.layer
        )
        shapes = [(num_pages, op.kv_heads, page_size, op.head_dim) for op in layers]
        self._caches = [
            _cache(model.weights, op.layer, held, cache is None, shape, self._device)
            for op, shape in zip(layers, shapes, strict=True)
        ]
        ranks = None
        if sum_ranks is not None and max_ranks is not None:
            ranks = OtherRanks(sum_ranks, max_ranks)
        self._actions = lower(program, weights, self._caches, ranks)
        self._logits = program.ops[-1].out
        self.weight_bytes = weights.nbytes
        self.cache_bytes = sum(each.nbytes for each in self._caches)
        pages = -(-sizes.max_positions // page_size)
        self._graphs = (
            None
            if recorder is None
            else DecodeGraphs(
                self._all, recorder, pages, page_size, sizes.kv_heads, self._staging, self._device
            )
        )

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        """Logits, float32 [R, vocab_size]."""
        with self._on_device():
            return _on_host(self._run(batch))

    def choose(self, batch: StepBatch, draws: Sequence[PlainDraw]) -> npt.NDArray[np.int32]:
        """The next token of each logit row, int32 [R]: all that is copied to the host."""
        return self.begin(batch, draws).tokens()

    def begin(
        self, batch: StepBatch, draws: Sequence[PlainDraw], follows: Follows | None = None
    ) -> InFlight:
        """All of a step's work is in the device's queue, behind that of the step before."""
        with self._on_device():
            return InFlight(draw(self._run(batch, follows), draws, self._staging))

    def hidden(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        """What logits are made of, float32 [R, hidden_size]."""
        with self._on_device():
            run = Run(self._arrays(batch, None))
            for action in self._actions[:-1]:
                action(run)
            return _on_host(run.tensor(HIDDEN).to(torch.float32))

    def record_all(self) -> None:
        """Compile and record decode steps of every size now, and not in front of who waits."""
        if self._graphs is not None:
            with self._on_device():
                self._graphs.record_all()

    def close(self) -> None:
        """Free the weights, the pool and the graphs."""
        self._actions, self._caches, self._graphs = [], [], None

    def _on_device(self) -> torch.inference_mode:
        """Kernels go to the device that is current in the thread that launches them."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        return torch.inference_mode()

    def _run(self, batch: StepBatch, follows: Follows | None = None) -> Tensor:
        """Logits on the device, float32 [R, vocab_size]; they may be written over."""
        if self._graphs is not None and is_decode(batch) and self._graphs.holds(batch):
            return self._graphs.run(batch, follows)
        arrays = self._arrays(batch, follows)
        if follows is not None:
            assert isinstance(follows.step, InFlight)
            hand_over(follows.step.chosen, arrays.sources, arrays.token_ids)
        return self._all(arrays)

    def _arrays(self, batch: StepBatch, follows: Follows | None) -> StepArrays:
        return step_arrays(batch, follows, self.page_size, *self._heads, self._staging)

    def _all(self, arrays: StepArrays) -> Tensor:
        assert self._actions, "the executor is closed"
        run = Run(arrays)
        for action in self._actions:
            action(run)
        return run.tensor(self._logits)


def _cache(
    source: WeightSource,
    layer: int,
    number: CacheNumber,
    as_stored: bool,
    shape: tuple[int, int, int, int],
    device: torch.device,
) -> LayerCache:
    """as_stored: with the scales that the checkpoint holds, if it does."""
    scales = kv_scales_of(source, layer) if as_stored else None
    stored = None if scales is None else (scales.keys, scales.values)
    return make_cache(number, shape, device, stored)


def stored_number(source: WeightSource) -> CacheNumber | None:
    """What a checkpoint says that its cache is rounded to; None where it says nothing."""
    scheme = kv_cache_of(source)
    return None if scheme is None else scheme.numbers


def _on_host(tensor: Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(tensor.cpu().numpy(), np.float32)


def _device(name: str) -> torch.device:
    """With its number, and current in this thread. Raises InputError where there is no such GPU, or
    one that is too old."""
    device = torch.device(name)
    if device.type == "cuda":
        require_gpu(device.index)
        number = torch.cuda.current_device() if device.index is None else device.index
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    return device
