"""One rank's part of a model, and the executor that runs it."""

from dataclasses import replace

import torch

from compile.model import Model
from compile.split import Share, SplitWeights, split_program
from quant.format.errors import InputError
from runtime.engine.batch import Executor
from runtime.parallel.ranks import Ranks
from runtime.part_spec import PartSpec


def device_of(spec: PartSpec, rank: int) -> torch.device:
    """GPU number `rank`, or the CPU."""
    on_gpu = spec.backend == "cuda" and spec.device == "cuda"
    return torch.device(f"cuda:{rank}" if on_gpu else "cpu")


def part_of(model: Model, rank: int, ranks: int) -> Model:
    """What one rank runs of `model`; reads headers only. Raises what `split_program` raises."""
    split = split_program(model.program, Share(rank, ranks))
    return replace(model, program=split.program, weights=SplitWeights(model.weights, split))


def open_part(model: Model, spec: PartSpec, ranks: Ranks) -> Executor:
    """The executor of this rank, its weights loaded."""
    part = part_of(model, ranks.rank, ranks.size)
    if spec.backend == "torch":
        from runtime.executors.torch import TorchExecutor

        return TorchExecutor(
            part,
            num_pages=spec.num_pages,
            page_size=spec.page_size,
            cache=spec.cache or "float32",
            sum_ranks=ranks.sum,
            max_ranks=ranks.max,
        )
    if spec.backend == "cuda":
        from runtime.executors.cuda import CudaExecutor

        return CudaExecutor(
            part,
            num_pages=spec.num_pages,
            page_size=spec.page_size,
            device=str(device_of(spec, ranks.rank)),
            dtype="float32" if spec.exact else "bfloat16",
            cache=spec.cache,
            sum_ranks=ranks.sum,
            max_ranks=ranks.max,
        )
    raise AssertionError("check_backend lets no other through")


def check_backend(backend: str) -> None:
    """Raises InputError for a backend that has no ranks."""
    if backend not in ("torch", "cuda"):
        raise InputError(
            f"the {backend} backend runs a model in one process; use --backend cuda or torch"
        )
