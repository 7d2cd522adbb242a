"""One measured figure after the other, as JSON and as a table."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

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


Cell = tuple[str, Callable[[], list[Row]]]
"""A name, and what measures one or a few figures under it."""


@dataclass
class Report:
    """All that is known so far. failed: what could not be measured, with the reason."""

    limits: Limits | None = None
    rows: list[Row] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def write(self, directory: Path) -> None:
        """gpu.json and gpu.md in `directory`, replaced whole."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("gpu.json", json.dumps(asdict(self), indent=2) + "\n"),
            ("gpu.md", as_markdown(self)),
        ):
            aside = directory / f"{name}.new"
            aside.write_text(text)
            aside.replace(directory / name)


def as_markdown(report: Report) -> str:
    limits, lines = report.limits, []
    if limits is not None:
        lines += [
            f"{limits.device}: copy {limits.bandwidth / 1e12:.2f} TB/s, bfloat16 product "
            f"{limits.bfloat16 / 1e12:.0f} TFLOP/s, int8 {_tera(limits.int8)}, e4m3 "
            f"{_tera(limits.e4m3)}",
            "",
        ]
    lines += [
        "| | | of the limit | wanted | difference |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in report.rows:
        fraction = "" if row.fraction is None else f"{row.fraction:.0%}"
        wanted = "" if row.wanted is None else f"{row.wanted:.0%}"
        difference = "" if row.difference is None else f"{row.difference:.1e}"
        figure = f"{row.value:.4g} {row.unit}"
        lines.append(f"| {row.what} | {figure} | {fraction} | {wanted} | {difference} |")
    lines += ["", *(f"not measured: {reason}" for reason in report.failed)]
    return "\n".join(lines) + "\n"


def _tera(rate: float | None) -> str:
    return "-" if rate is None else f"{rate / 1e12:.0f} TOP/s"
