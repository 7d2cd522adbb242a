"""One measured figure after the other, as JSON and as a table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.on_gpu.limits import Limits


@dataclass(frozen=True)
class Row:
    """value: in `unit`. fraction: of the tighter limit of the chip; None where none is meant.
    wanted: the least fraction that this project asks for."""

    what: str
    value: float
    unit: str
    fraction: float | None = None
    wanted: float | None = None
    difference: float | None = None
    """The largest relative difference from a reference, where one was computed."""


def as_json(
    limits: Limits, rows: Sequence[Row], left_out: Sequence[str], failed: int, seconds: float
) -> dict[str, Any]:
    return {
        "limits": asdict(limits),
        "rows": [asdict(row) for row in rows],
        "left_out": list(left_out),
        "failed_tests": failed,
        "seconds": round(seconds, 1),
    }


def as_markdown(limits: Limits, rows: Sequence[Row], left_out: Sequence[str]) -> str:
    lines = [
        f"{limits.device}: copy {limits.bandwidth / 1e12:.2f} TB/s, bfloat16 product "
        f"{limits.bfloat16 / 1e12:.0f} TFLOP/s, int8 {_tera(limits.int8)}, e4m3 "
        f"{_tera(limits.e4m3)}",
        "",
        "| | | of the limit | wanted | difference |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        fraction = "" if row.fraction is None else f"{row.fraction:.0%}"
        wanted = "" if row.wanted is None else f"{row.wanted:.0%}"
        difference = "" if row.difference is None else f"{row.difference:.1e}"
        figure = f"{row.value:.4g} {row.unit}"
        lines.append(f"| {row.what} | {figure} | {fraction} | {wanted} | {difference} |")
    lines += ["", *(f"left out: {reason}" for reason in left_out)]
    return "\n".join(lines) + "\n"


def _tera(rate: float | None) -> str:
    return "-" if rate is None else f"{rate / 1e12:.0f} TOP/s"
