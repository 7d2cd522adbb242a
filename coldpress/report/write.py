"""Writes a report: reads the artifacts, chooses the form, puts the file into place."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coldpress.jsonable import to_jsonable
from coldpress.report.artifact import Artifact
from quant.format.errors import InputError
from quant.format.staging import write_file_atomically

FORMS = {".html": "html", ".htm": "html", ".json": "json", ".md": "md"}


def write_report(paths: Sequence[Path], output: Path, form: str | None = None) -> dict[str, Any]:
    """Report on `paths` (directories, each with its measurements behind it) in one file.

    Raises InputError for an output whose suffix names no form, or that lies in an artifact.
    """
    from coldpress.report.sources import comparability, read_artifacts
    from coldpress.report.summary import missing

    form = form or _form(output)
    for path in paths:
        if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
            raise InputError(
                f"{output}: lies in the artifact {path}, whose files its manifest lists; "
                "name a file outside of it"
            )
    artifacts = read_artifacts(paths)
    # A name may hold what UTF-8 cannot: bytes of a file system in another encoding.
    data = render(artifacts, form).encode("utf-8", "replace")
    write_file_atomically(output, data)
    return {
        "output": str(output),
        "format": form,
        "bytes": len(data),
        "artifacts": [artifact.name for artifact in artifacts],
        "not_as_asked": {a.name: len(a.not_as_asked()) for a in artifacts},
        "missing": {a.name: missing(a) for a in artifacts if missing(a)},
        "notes": comparability(artifacts),
    }


def render(artifacts: Sequence[Artifact], form: str) -> str:
    """The text of the report as "html", "json" or "md"."""
    if form == "html":
        from coldpress.report.page import html_page

        return html_page(artifacts)
    if form == "md":
        from coldpress.report.markdown import markdown

        return markdown(artifacts)
    from coldpress.report.sources import to_json

    return json.dumps(to_jsonable(to_json(artifacts)), indent=1, allow_nan=False) + "\n"


def _form(output: Path) -> str:
    try:
        return FORMS[output.suffix.lower()]
    except KeyError:
        raise InputError(
            f"{output}: the suffix names no form of report; use .html, .json or .md, or --format"
        ) from None
