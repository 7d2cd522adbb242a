"""Rows edited on the device against the host's own edits, bit for bit."""

import numpy as np
import pytest
import torch

from runtime.engine import batch
from runtime.engine.batch import NO_TOKEN, NOTHING_LEFT, LogitEdits, PlainDraw
from runtime.engine.edits import EditsBuilder, apply
from tests.runtime.gpu import DEVICE

# The device is chosen before kernels are defined.
from runtime.executors.cuda.draws import draw  # isort: skip
from runtime.executors.cuda.staging import Staging, laid_out  # isort: skip
from runtime.kernels.triton import edits as device_edits, sampling  # isort: skip
from runtime.kernels.triton.edits import hand_over  # isort: skip

VOCAB = 70


def greedy(edits: LogitEdits | None) -> PlainDraw:
    return PlainDraw(0.0, 0, 1.0, 0.0, 0.5, edits)


def edits_of(seed: int, masked: bool) -> LogitEdits:
    random = np.random.default_rng(seed)
    builder = EditsBuilder(VOCAB)
    builder.penalize(random.random(VOCAB) < 0.4, 1.3)
    builder.subtract((random.integers(0, 3, VOCAB)).astype(np.float32), 0.7, -0.3)
    builder.add(np.array([3, 60]), np.array([1.1, -2.2], np.float32))
    builder.ban([5, 69])
    if masked:
        builder.allow_only(random.random(VOCAB) < 0.5)
    return builder.edits()


def test_edited_logits_are_those_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with and without edits, with a mask, and with a mask alone, over blocks of both."""
    monkeypatch.setattr(device_edits, "_BLOCK", 32)
    monkeypatch.setattr(device_edits, "_EDITS", 16)
    alone = EditsBuilder(VOCAB)
    alone.allow_only(np.arange(VOCAB) % 3 == 0)
    edits = [edits_of(1, False), None, edits_of(2, True), alone.edits()]
    logits = np.random.default_rng(3).normal(size=(4, VOCAB)).astype(np.float32) * 4
    expected = [row if e is None else apply(row, e) for row, e in zip(logits, edits, strict=True)]
    on_device = torch.from_numpy(logits.copy()).to(DEVICE)
    found = draw(on_device, [greedy(each) for each in edits], Staging(DEVICE))
    assert np.array_equal(on_device.cpu().numpy(), np.stack(expected))
    assert found.tolist() == [int(row.argmax()) for row in expected]


def test_what_is_no_number_and_what_is_left_of_numbers_are_told_apart() -> None:
    nothing = EditsBuilder(VOCAB)
    nothing.ban(list(range(VOCAB)))
    logits = np.zeros((4, VOCAB), np.float32)
    logits[1, 7] = logits[3, 7] = np.nan
    edits = [nothing.edits(), nothing.edits(), None, None]
    found = draw(torch.from_numpy(logits).to(DEVICE), [greedy(e) for e in edits], Staging(DEVICE))
    assert found.tolist() == [NOTHING_LEFT, NO_TOKEN, 0, NO_TOKEN]
    assert (sampling.NO_TOKEN, sampling.NOTHING_LEFT) == (batch.NO_TOKEN, batch.NOTHING_LEFT)


def test_tokens_go_from_step_to_step() -> None:
    def numbers(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=DEVICE)

    token_ids = numbers(50, 51, 52, 53)
    hand_over(numbers(7, NO_TOKEN, 9), numbers(2, -1, 1, 0), token_ids)
    assert token_ids.tolist() == [9, 51, 0, 7]


def test_staged_arrays_keep_their_type_shape_and_place() -> None:
    parts = [
        np.arange(3, dtype=np.int32),
        np.array([[0.5, -1.0]], np.float32),
        np.ones(1, np.int32),
    ]
    staging = Staging(DEVICE)
    into = torch.zeros(laid_out([3, 2, 1]), dtype=torch.int32, device=DEVICE)
    for target in (None, into):
        first = staging.upload(parts, target)
        for _ in range(4):
            staging.upload([np.full(9, 8, np.int32)])
        for part, found in zip(parts, first, strict=True):
            assert found.data_ptr() % 16 == first[0].data_ptr() % 16
            assert np.array_equal(found.cpu().numpy(), part)
            assert found.cpu().numpy().dtype == part.dtype
    assert into[:3].tolist() == [0, 1, 2]
