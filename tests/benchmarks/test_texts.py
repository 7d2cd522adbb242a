"""The same tokens for every tool, and none of them in the test."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from benchmarks.quality.texts import Sizes, cut_text, encode, prepare
from quant.calibration import pack
from quant.recipe import CalibrationSpec
from tests.tiny import TEXT, tiny_checkpoint

SIZES = Sizes(samples=6, tokens=16, windows=3, window=32)
LONG = TEXT * 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory: Path = tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    return AutoTokenizer.from_pretrained(directory)


def test_coldpress_reads_the_very_tokens_out_of_the_text(tokenizer: Any) -> None:
    material = prepare(LONG, tokenizer, SIZES)
    spec = CalibrationSpec(samples=SIZES.samples, tokens=SIZES.tokens, seed=5)
    packed = pack(iter([material.text]), tokenizer, spec, "text")
    np.testing.assert_array_equal(packed, material.calibration)


def test_the_text_for_calibration_ends_before_the_scored_one_begins(tokenizer: Any) -> None:
    material = prepare(LONG, tokenizer, SIZES)
    assert LONG[: len(LONG) // 2].startswith(material.text)
    assert material.calibration.shape == (6, 16)
    assert material.scored.shape == (3, 32)
    start = tokenizer.decode(material.scored[0])
    assert LONG[len(LONG) // 2 :].startswith(start)


def test_a_cut_keeps_the_tokens_before_it_and_few_more(tokenizer: Any) -> None:
    whole = encode(tokenizer, TEXT)
    for needed in (16, 32, 48, 112):
        ids = encode(tokenizer, cut_text(TEXT, tokenizer, needed, 16))
        assert ids[:needed] == whole[:needed]
        assert needed <= len(ids) < needed + 16


def test_too_little_text_is_told(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="more text"):
        prepare(TEXT, tokenizer, Sizes(samples=1000, tokens=16, windows=1, window=8))
    with pytest.raises(ValueError, match="need more"):
        prepare(TEXT, tokenizer, Sizes(samples=1, tokens=16, windows=1000, window=8))
