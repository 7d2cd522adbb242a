"""docs/SERVER.md names every route and every metric, and no others."""

import re
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.runtime.server.harness import Running

TEXT = (Path(__file__).parents[3] / "docs" / "SERVER.md").read_text(encoding="utf-8")
ROUTES, METRICS = (
    TEXT.partition("## Ready")[0],
    TEXT.partition("## Metrics")[2].partition("\n## ")[0],
)


def documented_routes() -> set[str]:
    """As the app spells them: one name for parameters, optional parts with and without."""
    found = set()
    for written in re.findall(r"`(?:GET |POST )?(/[^` ]*|\.\.\./\w+)`", ROUTES):
        found.add(re.sub(r"\{\w+\}", "{}", written))
    return found


def test_every_route_is_named(server: Running) -> None:
    written = documented_routes()
    for route in server.server.app.routes:
        path = re.sub(r"\{\w+(:path)?\}", "{}", str(getattr(route, "path", "")))
        # The page's own files, and KServe's paths with their optional parts.
        if path.startswith("/page/"):
            continue
        if path.startswith("/v2/models/"):
            assert "/v2/models/{}[/versions/1][/ready]" in written
            continue
        if path.endswith("/unload"):
            path = ".../unload"
        assert path in written, f"docs/SERVER.md does not name {path}"


def test_every_metric_is_named(server: Running) -> None:
    rows = [line.split("|")[1] for line in METRICS.splitlines() if line.startswith("| `")]
    written = {name for row in rows for name in re.findall(r"`([a-z_]+)[`{]", row)}
    text = httpx.get(f"{server.url}/metrics", timeout=60).text
    given = {
        family.name.removeprefix("coldpress_") + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(text)
    }
    assert given <= written, "docs/SERVER.md does not name these"
    assert written - {"coldpress_"} <= given, "these are written down, but not given"
