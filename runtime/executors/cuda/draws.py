"""How rows are drawn, as arrays on the device."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from runtime.engine.batch import LogitEdits, PlainDraw
from runtime.executors.cuda.staging import Staging
from runtime.kernels.triton.edits import EditRows, edit
from runtime.kernels.triton.sampling import Choices, choose


def draw(logits: Tensor, draws: Sequence[PlainDraw], staging: Staging) -> Tensor:
    """float32 [R, vocab], which edits change in place -> int32 [R], on the device."""
    columns = [
        np.array([each.temperature for each in draws], np.float32),
        np.array([each.top_k for each in draws], np.int32),
        np.array([each.top_p for each in draws], np.float32),
        np.array([each.min_p for each in draws], np.float32),
        np.array([each.uniform for each in draws], np.float32),
    ]
    edits = [each.edits for each in draws]
    if any(edits):
        *chosen, starts, ids, numbers, mask, masks = staging.upload(
            [*columns, *_edit_arrays(edits, logits.shape[1])]
        )
        state = edit(logits, EditRows(starts, ids, numbers, mask, masks))
        return choose(logits, Choices(*chosen), state)
    return choose(logits, Choices(*staging.upload(columns)))


def _edit_arrays(
    edits: Sequence[LogitEdits | None], vocab_size: int
) -> tuple[npt.NDArray[np.int32] | npt.NDArray[np.float32], ...]:
    """starts, ids, numbers, mask and masks of `EditRows`."""
    made = [each for each in edits if each is not None]
    counts = [0 if each is None else len(each.ids) for each in edits]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    numbers = np.stack(
        [
            np.concatenate([getattr(each, name) for each in made])
            for name in ("factor", "frequency", "presence", "bias")
        ]
    )
    mask = np.full(len(edits), -1, np.int32)
    masks = [np.zeros(-(-vocab_size // 32), np.int32)]
    for row, each in enumerate(edits):
        if each is not None and each.allowed is not None:
            mask[row] = len(masks)
            masks.append(each.allowed)
    ids = np.concatenate([each.ids for each in made]).astype(np.int32)
    return starts, ids, numbers.astype(np.float32), mask, np.stack(masks)
