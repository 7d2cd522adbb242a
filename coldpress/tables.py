"""Tables for people. Machines get the same figures as JSON."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from coldpress.jsonable import to_jsonable

if TYPE_CHECKING:
    from compile.verify import VerifyReport


def pairs_table(title: str, value: Any) -> Group:
    """One row per figure; nested mappings become dotted names, long lists their length."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, item in _flatten("", to_jsonable(value)):
        table.add_row(key, show(key, item))
    return Group(Text(title, style="italic"), table)


def rows_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A plain table; numbers are aligned to the right."""
    listed = [list(row) for row in rows]
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(listed) and all(isinstance(row[index], int | float) for row in listed)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        table.add_row(*(show(name, cell) for name, cell in zip(columns, row, strict=True)))
    return table


def stacked(*tables: Table) -> Group:
    """One below the other."""
    return Group(*tables)


def verify_table(report: "VerifyReport") -> Table:
    """One row per check, with what was found."""
    table = Table(title=report.artifact, title_justify="left")
    for column in ("check", "passed", "found"):
        table.add_column(column, overflow="fold")
    files = report.files_checked
    table.add_row("files", show("", not report.file_problems), f"{files} digests")
    if report.against is not None:
        same = not report.program_differences
        table.add_row("program", show("", same), f"against {report.against}")
        whole = not (report.missing or report.unexpected or report.counts.get("different"))
        counts = ", ".join(f"{count} {state}" for state, count in report.counts.items())
        table.add_row("tensors", show("", whole), counts)
    if report.logits is not None:
        check = report.logits
        found = f"max difference {check.max_difference:.3g}, KLD {check.mean_kld:.2g}"
        table.add_row("logits", show("", check.passed), f"{found}, top-1 {check.top1:.1%}")
    if report.engine is not None:
        off = (
            f"max difference {report.engine.max_difference:.3g} from the oracle on the same numbers"
        )
        table.add_row("engine", show("", report.engine.passed), off)
    return table


def show(name: str, value: Any) -> str:
    """One cell: bytes with their unit, floats with four digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.rsplit(".", maxsplit=1)[-1].endswith("bytes"):
        return human_bytes(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def human_bytes(size: int) -> str:
    """Decimal units, as disks and downloads are sold."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _flatten(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else str(key), item)
    elif isinstance(value, list) and (len(value) > 6 or any(isinstance(x, dict) for x in value)):
        yield prefix, f"{len(value)} entries"
    elif isinstance(value, list):
        yield prefix, ", ".join(str(item) for item in value) or "-"
    else:
        yield prefix, value
