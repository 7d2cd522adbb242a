"""One rank's part of a model, and the executor that runs it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from compile.model import Model
from compile.split import Share, SplitWeights, split_program
from quant.format.errors import InputError
from runtime.engine.batch import Executor
from runtime.parallel.ranks import Ranks

Backend = Literal["torch", "cuda"]


@dataclass(frozen=True)
class PartSpec:
    """Plain data, so that another process can be told. backend: "torch", on CPUs, or "cuda"."""

    path: Path
    backend: str
    num_pages: int
    page_size: int

    def device(self, rank: int) -> torch.device:
        """GPU number `rank`, or the CPU."""
        return torch.device(f"cuda:{rank}" if self.backend == "cuda" else "cpu")


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
            part, num_pages=spec.num_pages, page_size=spec.page_size, sum_ranks=ranks.sum
        )
    if spec.backend == "cuda":
        from runtime.executors.cuda import CudaExecutor

        return CudaExecutor(
            part,
            num_pages=spec.num_pages,
            page_size=spec.page_size,
            device=str(spec.device(ranks.rank)),
            sum_ranks=ranks.sum,
        )
    raise InputError(
        f"the {spec.backend} backend runs a model in one process; use --backend cuda or torch"
    )
