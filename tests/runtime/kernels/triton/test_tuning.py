"""Tile sizes of every chip: there is one for each number of rows, which kernels take."""

import pytest

from runtime.kernels.triton import tuning
from runtime.kernels.triton.tuning import CHIPS, attention_config, chip, rounded_config


@pytest.fixture(params=CHIPS, ids=str)
def capability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    found: tuple[int, int] = request.param
    monkeypatch.setattr(tuning, "capability", lambda: found)
    return found


@pytest.mark.parametrize("rows", [1, 16, 17, 33, 128, 129, 4096])
def test_a_config_exists_for_every_number_of_rows(capability: tuple[int, int], rows: int) -> None:
    assert chip() is CHIPS[capability]
    packed = tuning.weight_only_config(rows, 4096, 4096)
    for size in (
        packed.rows,
        packed.columns,
        rounded_config(rows).rows,
        rounded_config(rows).depth,
    ):
        assert size >= 16 and size & (size - 1) == 0
    assert packed.splits >= 1


@pytest.mark.parametrize("page_size", [16, 32, 64, 128])
@pytest.mark.parametrize(("head_dim", "width"), [(64, 1), (128, 2), (256, 2), (256, 4)])
def test_tiles_of_a_page_fit_into_half_of_shared_memory(
    capability: tuple[int, int], page_size: int, head_dim: int, width: int
) -> None:
    for rows in (16, 64):
        config = attention_config(rows, page_size, head_dim, width)
        assert page_size % config.keys == 0
        on_the_way = 2 * config.keys * head_dim * max(width, 2) * config.stages
        assert config.stages == 1 or on_the_way <= CHIPS[capability].shared // 2


def test_a_chip_that_nobody_knows_takes_the_config_of_the_one_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "capability", lambda: (12, 1))
    assert chip() is CHIPS[12, 0]


def test_few_rows_are_split_until_a_chip_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "num_processors", lambda: 132)
    assert tuning.weight_only_config(1, 4096, 1024).splits == 8
    assert tuning.weight_only_config(1, 4096, 28672).splits == 1
