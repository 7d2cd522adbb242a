"""Types asked for by name from integers: done, counted, told, and provable to the bit."""

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import pytest

from compile.to_gguf import build_gguf
from compile.to_gguf.plan import plan_gguf
from compile.verify import verify
from quant.format.gguf_file import GgufFile
from quant.format.scheme import IntScheme, PerChannel, PerGroup
from tests.tiny import tiny_checkpoint

INT4 = IntScheme(4, True, PerGroup(64))
ASYMMETRIC = IntScheme(4, False, PerGroup(32))
INT8 = IntScheme(8, True, PerChannel())
WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate": 256, "layers": 1}
"""Rows of 64 are not whole blocks of 256; those of down_proj are."""


def checkpoint(folder: Path, scheme: IntScheme) -> Path:
    return tiny_checkpoint(folder / "model", scheme=scheme, **WIDE)


@pytest.mark.parametrize(
    ("scheme", "type_name", "counts"),
    [
        (INT4, "q4_k_m", {"equal": 9, "requantized": 3}),
        (INT4, "q5_0", {"equal": 12}),
        (INT4, "q4_1", {"equal": 12}),
        (INT4, "q3_k_s", {"equal": 9, "requantized": 3}),
        (INT8, "q4_k_m", {"equal": 4, "requantized": 8}),
        (INT8, "q8_0", {"equal": 12}),
        (ASYMMETRIC, "q4_0", {"equal": 5, "requantized": 7}),
        (ASYMMETRIC, "iq4_xs", {"equal": 3, "requantized": 9}),
        (INT8, "f16", {"equal": 4, "rounded": 8}),
    ],
    ids=str,
)
def test_what_is_asked_for_is_done_and_proven(
    scheme: IntScheme, type_name: str, counts: dict[str, int], tmp_path: Path
) -> None:
    """Tables are rounded by mixes alone; what a type holds exactly is kept."""
    source = checkpoint(tmp_path, scheme)
    built = build_gguf(source, tmp_path / "model.gguf", type_name)
    report = verify(tmp_path / "model.gguf", source)
    assert report.passed, report.failures
    assert report.counts == counts
    again = counts.get("requantized", 0) - 2 * (type_name in ("q4_k_m", "q3_k_s", "iq4_xs"))
    told = [note for note in built.notes if "were rounded again" in note]
    assert (again > 0) == bool(told)
    assert all(note.startswith(f"{again} quantized matrices") for note in told)
    assert bool(counts.get("requantized")) == any("relative rms" in n for n in report.notes)


@pytest.mark.parametrize("scheme", [INT4, INT8], ids=str)
def test_one_changed_bit_is_found(scheme: IntScheme, tmp_path: Path) -> None:
    """In a code, in a nested scale, in a factor: none of them is what the encoder makes."""
    source, path = checkpoint(tmp_path, scheme), tmp_path / "model.gguf"
    build_gguf(source, path, "q4_k_m")
    file = GgufFile(path)
    name = "blk.0.ffn_down.weight"
    start = file.tensors[name].offset
    whole = path.read_bytes()
    for place in (40, 8, 0):
        data = bytearray(whole)
        data[start + place] ^= 1
        path.write_bytes(data)
        failures = verify(path, source).failures
        assert failures == ["tensor model.layers.0.mlp.down_proj.weight holds other numbers"]


def test_the_plan_says_what_it_will_come_to(tmp_path: Path) -> None:
    plan = plan_gguf(checkpoint(tmp_path, INT4), "q4_k_m")
    rows = {row.tensor: row for row in plan.rows}
    short = "rows of 64 are not whole blocks of 256"
    assert rows["blk.0.attn_q.weight"].reason == f"the same numbers: {short}: Q5_0 instead of Q4_K"
    assert rows["token_embd.weight"].reason == f"rounded: {short}: Q5_0 instead of Q4_K"
    assert rows["blk.0.ffn_down.weight"].reason == "rounded again: as the mix of types has it"
    counts = Counter(row.type.name for row in plan.rows if len(row.shape) == 2)
    assert counts == {"Q5_0": 6, "Q8_0": 2, "Q6_K": 1}
    assert "8 matrices have rows that blocks do not fill" in " ".join(plan.notes)
    assert "Q5_0 instead of Q4_K (6), Q8_0 instead of Q6_K (2)" in " ".join(plan.notes)
    bits = {"Q5_0": 4.5, "Q8_0": 6.5625}
    filled = sum(
        prod(row.shape) * bits[row.type.name] / 8 if short in row.reason else row.nbytes
        for row in plan.rows
    )
    assert f"{sum(row.nbytes for row in plan.rows) / filled - 1:.0%} larger" in " ".join(plan.notes)
    assert "1 quantized matrices are rounded again, as asked" in " ".join(plan.notes)


def test_auto_never_rounds(tmp_path: Path) -> None:
    for number, scheme in enumerate((INT4, INT8, ASYMMETRIC)):
        source = checkpoint(tmp_path / str(number), scheme)
        built = build_gguf(source, tmp_path / f"{number}.gguf")
        assert set(verify(built.path, source).counts) == {"equal"}
        assert not any("rounded again" in note for note in built.notes)


@pytest.mark.parametrize(
    ("family", "type_name", "state"),
    [
        ("qwen3_moe", "q4_k_m", "equal"),
        ("qwen3_moe", "mxfp4", "requantized"),
        ("mixtral", "q4_k_m", "requantized"),
        ("mixtral", "q8_0", "requantized"),
    ],
)
def test_experts_are_rounded_and_proven_one_by_one(
    family: str, type_name: str, state: str, tmp_path: Path
) -> None:
    """Rows of 64 fill blocks of 32, so that codes of 4 bits are kept but in MXFP4."""
    scheme = INT4 if family == "qwen3_moe" else None
    source = tiny_checkpoint(tmp_path / "model", family, scheme=scheme, hidden_size=64, layers=1)
    path = tmp_path / "model.gguf"
    build_gguf(source, path, type_name)
    report = verify(path, source)
    assert report.passed, report.failures
    experts = [tensor for tensor in report.tensors if ".experts." in tensor.name]
    assert len(experts) == 3 * 4
    assert {tensor.state for tensor in experts} == {state}
    file = GgufFile(path)
    stacked = file.tensors["blk.0.ffn_up_exps.weight"]
    data = bytearray(path.read_bytes())
    data[stacked.offset + stacked.nbytes - 1] ^= 0x40
    path.write_bytes(data)
    (failure,) = verify(path, source).failures
    assert ".experts.3." in failure and "holds other numbers" in failure
