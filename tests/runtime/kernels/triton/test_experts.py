"""Tokens sent to experts, and the products of their rows, against a loop over pairs."""

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.gpu import DEVICE, sum_bound

# The device is chosen before kernels are defined.
from runtime.kernels.triton.experts import Sent, dense_experts, route  # isort: skip
from runtime.kernels.triton.norm import round_groups, round_rows  # isort: skip
from runtime.kernels.triton.rounded import RoundedRows, RoundedWeight, rounded_matmul  # isort: skip
from runtime.kernels.triton.tuning import expert_rows  # isort: skip

TOKENS, EXPERTS, CHOSEN, OUT = 21, 3, 2, 34


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 50), st.integers(1, 9), st.sampled_from([16, 64]),
    st.data(),
)  # fmt: skip
def test_every_pair_has_one_row_in_a_block_of_its_expert(
    seed: int, tokens: int, experts: int, rows: int, data: st.DataObject
) -> None:
    chosen = data.draw(st.integers(1, experts))
    logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed))
    sent, factors = route(logits.to(DEVICE), chosen, normalized=True, rows=rows)
    wanted = logits.topk(chosen).indices
    assert torch.allclose(factors.sum(-1).cpu(), torch.ones(tokens))
    blocks = sent.pair.cpu().view(-1, rows)
    assert len(blocks) == sent.blocks
    assert sorted(blocks[blocks >= 0].tolist()) == list(range(tokens * chosen))
    for block, expert in zip(blocks.tolist(), sent.expert.tolist(), strict=True):
        for pair in block:
            assert pair < 0 or wanted[pair // chosen, pair % chosen] == expert


def sent_to() -> tuple[Sent, list[int]]:
    """Where tokens go, and the expert of each pair; the second expert has no token at all."""
    logits = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(1))
    logits[:, 1] = -9.0
    sent, _ = route(logits.to(DEVICE), CHOSEN, normalized=False)
    return sent, logits.topk(CHOSEN).indices.flatten().tolist()


def exact(x: torch.Tensor, weight: torch.Tensor, experts: list[int], per_row: int) -> torch.Tensor:
    """float64 [pairs, OUT]."""
    matrices = weight.double().view(EXPERTS, OUT, -1)
    return torch.stack(
        [x[pair // per_row].double() @ matrices[expert].T for pair, expert in enumerate(experts)]
    )


@pytest.mark.parametrize("shared", [True, False])
def test_dense_products_are_those_of_float64(shared: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    sent, experts = sent_to()
    x = torch.randn(TOKENS if shared else TOKENS * CHOSEN, 70, generator=generator)
    weight = torch.randn(EXPERTS * OUT, 70, generator=generator)
    told = sent if shared else sent.behind()
    found = dense_experts(x.to(DEVICE), weight.to(DEVICE), told).cpu()
    wanted = exact(x, weight, experts, told.per_row)
    bound = sum_bound(exact(x.abs(), weight.abs(), experts, told.per_row), 70)
    assert ((found.double() - wanted).abs() <= bound).all()


@pytest.mark.parametrize("group", [0, 32])
def test_rounded_products_are_those_of_float64(group: int) -> None:
    """int8, whose sums are exact, with a scale per row or per group of both sides."""
    generator = torch.Generator().manual_seed(3)
    sent, experts = sent_to()
    x = torch.randn(TOKENS, 64, generator=generator).to(DEVICE)
    plain = torch.randn(EXPERTS * OUT, 64, generator=generator).to(DEVICE)

    def rounded(numbers: torch.Tensor) -> RoundedRows:
        return round_groups(numbers, "int8", group) if group else round_rows(numbers, "int8")

    def value(rows: RoundedRows) -> torch.Tensor:
        scale = rows.scale.cpu().double().view(len(rows.scale), -1)
        return rows.codes.cpu().double() * scale.repeat_interleave(64 // scale.shape[1], 1)

    rows, matrix = rounded(x), rounded(plain)
    weight = RoundedWeight(matrix.codes, matrix.scale)
    found = rounded_matmul(rows, weight, torch.float32, group=group, sent=sent).cpu().double()
    wanted = exact(value(rows), value(matrix), experts, CHOSEN)
    bound = sum_bound(exact(value(rows).abs(), value(matrix).abs(), experts, CHOSEN), 8)
    assert ((found - wanted).abs() <= bound).all()


def test_blocks_are_large_where_experts_have_many_tokens() -> None:
    kinds: dict[tuple[int, int], Literal[16, 64]] = {(8, 128): 16, (2048 * 8, 128): 64}
    assert {shape: expert_rows(*shape) for shape in kinds} == kinds
