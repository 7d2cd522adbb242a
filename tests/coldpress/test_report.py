"""The report: its numbers are those of the files, and names from files stay names."""

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from coldpress.cli import run
from coldpress.inspection import inspect_model
from coldpress.report.artifact import layer_bits, layer_errors, place
from coldpress.report.page import html_page
from coldpress.report.sources import read_artifact, read_artifacts
from compile.manifest import check_files, read_manifest, write_manifest
from quant.format.errors import FileFormatError, InputError
from quant.report import REPORT_NAME
from tests.coldpress.conftest import Run
from tests.tiny import tiny_checkpoint

Capture = pytest.CaptureFixture[str]

PARTS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")
FALLBACK = "fallback rtn: the Hessian is not <positive> definite"
HOSTILE = "</td><script>alert('x')</script> & \"'> <img src=http://evil.example/x> \u202e\x00\ud800"
VOID = {"meta", "br"}


class Page(HTMLParser):
    """An independent reader: fails on tags that do not nest; keeps text and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[tuple[str, str]] = []
        self.cells: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.cells.append([])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open:
            assert not data.strip()
            return
        self.texts.append((self.open[-1], data))
        if self.open[-1] in ("td", "th"):
            self.cells[-1].append(data)

    def row(self, name: str) -> list[str]:
        return next(row for row in self.cells if row and row[0] == name)


def assert_stands_alone(text: str) -> Page:
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(page.tags)
    assert not {"src", "href", "srcset", "data", "action"} & {name for name, _ in page.attributes}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    style = "".join(data for tag, data in page.texts if tag == "style")
    assert "url(" not in style and "@import" not in style
    return page


def module(layer: int, part: str, **fields: Any) -> dict[str, Any]:
    known = {
        "module": f"model.layers.{layer}.{part}",
        "scheme": "int4-sym-g32",
        "algorithm": "gptq",
        "state": "as asked",
        "weight_error": 0.1 + layer / 7 + len(part) / 1000,
        "output_error": 0.05 + layer / 11 + len(part) / 1000,
        "damping": 0.01,
        "dead_columns": 3,
        "tokens": 65536,
        "digest": "ab" * 32,
    }
    return {**known, **fields}


MODULES = [module(layer, part) for layer in (0, 1) for part in PARTS]
EVALUATION = {
    "perplexity": 31.355,
    "perplexity_se": 1.4568,
    "tokens": 4092,
    "window": 1024,
    "kld": {"mean": 0.001345, "se": 0.0000457, "p99": 0.010049, "max": 9.6978},
    "top1": {"mean": 0.9807, "se": 0.00215},
    "ppl_ratio": 1.41842,
    "baseline_perplexity": 22.1055,
}


def make_artifact(
    folder: Path,
    reported: list[dict[str, Any]] | None = MODULES,
    evaluation: Mapping[str, Any] | None = None,
    **manifest: Any,
) -> Path:
    """A float checkpoint that says of itself that it was quantized."""
    tiny_checkpoint(folder)
    if reported is not None:
        (folder / REPORT_NAME).write_text(json.dumps({"version": 1, "modules": reported}))
    write_manifest(folder, "checkpoint", evaluation=evaluation, **manifest)
    return folder


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(
        tmp_path_factory.mktemp("report") / "int4",
        sources=[{"name": "the-original"}],
        recipe={"description": "nearest rounding"},
        calibration={"source": "self"},
        evaluation=EVALUATION,
    )


@pytest.fixture
def page(artifact: Path, tiny_gguf: Path, tmp_path: Path) -> Page:
    output = tmp_path / "report.html"
    assert run(["report", str(artifact), str(tiny_gguf), "-o", str(output)]) == 0
    return assert_stands_alone(output.read_text(encoding="utf-8"))


def test_every_module_stands_in_the_page_with_its_figures(page: Page) -> None:
    assert page.cells[0][:2] == ["artifact", "kind"]
    for entry in MODULES:
        row = page.row(entry["module"])
        assert row[1:4] == ["int4-sym-g32", "gptq", "as asked"]
        shown = [entry["weight_error"], entry["output_error"], 0.01, 3, 65536]
        assert [float(cell) for cell in row[4:]] == pytest.approx(shown, rel=5e-4)


def test_the_comparison_has_the_figures_of_the_evaluation(page: Page, artifact: Path) -> None:
    row = page.row("int4")
    assert row[1:3] == ["checkpoint", "the-original"]
    assert float(row[4]) == pytest.approx(inspect_model(artifact)["bits_per_weight"], abs=0.005)
    assert row[5:] == [
        *("31.36 ± 1.46", "1.4184", "0.001345 ± 0.000046", "0.01005", "9.698"),
        *("98.1% ± 0.2%", "-"),
    ]


def test_what_is_not_known_is_said_and_not_invented(page: Page, tiny_gguf: Path) -> None:
    row = next(row for row in page.cells if row[:2] == [tiny_gguf.name, "gguf"])
    assert row[5:] == ["-"] * 7
    said = [data for tag, data in page.texts if tag == "li"]
    of_gguf = [line for line in said if line.startswith(f"{tiny_gguf.name}: ")]
    assert any("Not evaluated" in line for line in of_gguf)
    assert any("built, not quantized" in line for line in of_gguf)
    # One evaluation is no comparison.
    assert ("h2", "Size and distance") not in page.texts


def test_the_map_has_a_cell_for_each_module(page: Page) -> None:
    titles = [data for tag, data in page.texts if tag == "title"]
    for entry in MODULES:
        assert f"{entry['module']}: {entry['output_error']:.4g}" in titles
    captions = [data for tag, data in page.texts if tag == "figcaption"]
    errors = [entry["output_error"] for entry in MODULES]
    assert any(f"from {min(errors):.4g}" in c and f"to {max(errors):.4g}" in c for c in captions)


def test_means_by_layer_are_those_of_the_modules(artifact: Path) -> None:
    read = read_artifact(artifact)
    for error in ("weight_error", "output_error"):
        for layer, mean in layer_errors(read, error).items():
            values = [m[error] for m in MODULES if f".{layer}." in m["module"]]
            assert mean == pytest.approx(sum(values) / len(values))
    # A float checkpoint has the bits of its format everywhere.
    assert set(layer_bits(read).values()) == {16.0}


def test_modules_that_are_not_as_asked_come_first_and_stand_out(tmp_path: Path) -> None:
    modules = [*MODULES[:5], module(1, "mlp.up_proj", state=FALLBACK, output_error=None)]
    text = html_page([read_artifact(make_artifact(tmp_path / "odd", modules))])
    page = assert_stands_alone(text)
    assert ("p", "odd: 1 of 6 modules is not as asked.") in page.texts
    # In the list on top, and in the table of all modules.
    assert text.count('<tr class="warn"><td>model.layers.1.mlp.up_proj</td>') == 2
    assert text.index("not as asked") < text.index("Comparison")
    assert 'class="heat flagged none"' in text
    assert ("title", f"model.layers.1.mlp.up_proj: not recorded; {FALLBACK}") in page.texts


def test_what_was_kept_is_listed_but_is_no_warning(tmp_path: Path) -> None:
    head = module(0, "", module="lm_head", state="kept in 16 bit: outside", output_error=None)
    text = html_page([read_artifact(make_artifact(tmp_path / "head", [*MODULES, head]))])
    assert_stands_alone(text)
    assert text.count('<tr class="kept"><td>lm_head</td>') == 2
    assert '<p class="kept">head: 1 of 7 modules is not as asked.</p>' in text
    assert 'class="warn"' not in text


def test_two_evaluations_make_a_scatter(artifact: Path, tmp_path: Path) -> None:
    better = {**EVALUATION, "kld": {"mean": 0.0001, "se": 0.00001, "p99": 0.01, "max": 1.0}}
    other = make_artifact(tmp_path / "better", evaluation=better)
    text = html_page(read_artifacts([artifact, other]))
    titles = [data for tag, data in assert_stands_alone(text).texts if tag == "title"]
    assert [title for title in titles if title.startswith("int4: ") and "0.001345" in title]
    assert [title for title in titles if title.startswith("better: ") and "0.0001" in title]
    assert "cannot be compared" not in text
    longer = make_artifact(tmp_path / "longer", evaluation={**EVALUATION, "tokens": 8184})
    assert "cannot be compared" in html_page(read_artifacts([artifact, longer]))


def test_names_from_files_stay_names(tmp_path: Path, capsys: Capture) -> None:
    odd = module(0, "mlp.down_proj", module=HOSTILE, scheme=HOSTILE, algorithm=HOSTILE)
    layered = module(0, HOSTILE, state=HOSTILE)
    layered["extra <b>figure</b>"] = 1.5
    folder = make_artifact(
        tmp_path / "<b>'\"&",
        [odd, layered],
        recipe={"description": "<i>r</i>"},
        calibration={"source": "<i>c</i>"},
        sources=[{"name": "<i>s</i>"}],
    )
    for form in ("html", "md", "json"):
        output = tmp_path / f"report.{form}"
        assert run(["report", str(folder), "-o", str(output)]) == 0, capsys.readouterr().err
        text = output.read_bytes().decode()
        if form == "html":
            assert "i" not in assert_stands_alone(text).tags
            assert not re.search("[\x00-\x08\u202e]", text)
        if form == "md":
            assert not re.search(r"(?<!\\)<", text)


def test_markdown_is_a_table_of_the_same_figures(artifact: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.md"
    assert run(["report", str(artifact), "-o", str(output)]) == 0
    lines = output.read_text(encoding="utf-8").splitlines()
    row = next(line for line in lines if line.startswith("| int4 "))
    assert row.count("|") == 13 and "| 0.001345 ± 0.000046 |" in row
    tables = [line for line in lines if line.startswith("| 0 |")]
    mean = sum(m["output_error"] for m in MODULES[:3]) / 3
    assert tables == [f"| 0 | {mean:.4g} | {tables[0].split('|')[3].strip()} | 16 |"]


def test_json_holds_everything_unrounded(artifact: Path, tmp_path: Path, run_json: Run) -> None:
    output = tmp_path / "report.json"
    outcome = run_json("report", artifact, "-o", output)
    assert outcome["format"] == "json" and outcome["bytes"] == output.stat().st_size
    assert outcome["artifacts"] == ["int4"] and outcome["not_as_asked"] == {"int4": 0}
    (found,) = json.loads(output.read_text())["artifacts"]
    assert found["bytes"] == weight_bytes(artifact)
    assert found["evaluation"]["kld_max"] == EVALUATION["kld"]["max"]  # type: ignore[index]
    for entry, written in zip(found["modules"], MODULES, strict=True):
        assert entry["figures"]["output_error"] == written["output_error"]
        assert entry["name"] == written["module"]


def test_measurements_belong_to_the_directory_before_them(
    tmp_path: Path, tiny_gguf: Path, tiny: Path, text_file: Path, run_json: Run
) -> None:
    folder = make_artifact(tmp_path / "a")
    figures = run_json("eval", folder, "--text", text_file, "--baseline", tiny, "--window", 64)
    speeds = run_json("bench", folder, "--concurrency", "1,2", "--output-tokens", 3)
    evaluation, bench = tmp_path / "eval.json", tmp_path / "bench.json"
    evaluation.write_text(json.dumps(figures))
    bench.write_text(json.dumps(speeds))
    read = read_artifacts([folder, evaluation, bench, tiny_gguf])
    assert read[0].evaluation is not None and read[1].evaluation is None
    assert read[0].evaluation.perplexity == figures["perplexity"]
    assert read[0].bits_per_weight == figures["bits_per_weight"]
    assert read[0].bytes == figures["bytes"] == speeds["limits"]["weight_bytes"]
    decoded = [one["decode_tokens_per_second"] for one in speeds["runs"]]
    assert [one.decode for one in read[0].runs] == decoded
    row = assert_stands_alone(html_page(read)).row("a")
    assert row[-1] == f"{decoded[0]:.1f} (1), {decoded[1]:.1f} (2)"
    for measured in (evaluation, bench):
        with pytest.raises(InputError, match="measured on before it"):
            read_artifacts([folder, tiny_gguf, measured])
    with pytest.raises(InputError, match="measured on before it"):
        read_artifacts([evaluation, folder])


@pytest.mark.parametrize("content", ["[]", "{}", "nonsense", '{"error": "no", "exit_code": 2}'])
def test_a_file_that_measures_nothing_is_refused(
    content: str, artifact: Path, tmp_path: Path
) -> None:
    path = tmp_path / "figures.json"
    path.write_text(content)
    with pytest.raises(FileFormatError, match=r"figures\.json"):
        read_artifacts([artifact, path])


@pytest.mark.parametrize(
    "report",
    [
        "{",
        "[]",
        "{}",
        '{"modules": {}}',
        '{"modules": [1]}',
        '{"modules": [{"module": "a", "scheme": 4, "algorithm": "rtn", "state": "as asked"}]}',
    ],
)
def test_a_broken_quantization_report_is_refused_by_name(report: str, tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "a")
    (folder / REPORT_NAME).write_text(report)
    with pytest.raises(FileFormatError, match="quantization_report"):
        read_artifact(folder)


def test_figures_beyond_reason_are_left_out(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "a")
    text = json.dumps({"modules": [module(0, "a"), module(1, "a"), module(2, "a")]})
    values = iter(["NaN", "1e999", f"1{'0' * 400}"])
    text = re.sub(r'(?<="output_error": )[0-9.]+', lambda _: next(values), text)
    (folder / REPORT_NAME).write_text(text)
    read = read_artifact(folder)
    assert [m.figures["output_error"] for m in read.modules] == [None] * 3
    assert read.error_name() == "weight_error"
    assert_stands_alone(html_page([read]))


def test_a_payload_that_does_not_open_is_told(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "a", evaluation=EVALUATION)
    size = weight_bytes(folder)
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    read = read_artifact(folder)
    assert read.bytes == size and read.bits_per_weight is None
    assert any("Bits per weight are unknown" in sentence for sentence in read.missing)
    assert_stands_alone(html_page([read]))


def test_without_the_report_the_manifest_tells_the_states(tmp_path: Path) -> None:
    states = {
        "model.layers.0.mlp.up_proj": {"scheme": "x", "algorithm": "rtn", "state": FALLBACK},
        "model.layers.1.mlp.up_proj": {"scheme": "x", "algorithm": "rtn", "state": "as asked"},
    }
    read = read_artifact(make_artifact(tmp_path / "a", None, modules=states))
    assert [m.name for m in read.not_as_asked()] == ["model.layers.0.mlp.up_proj"]
    page = assert_stands_alone(html_page([read]))
    assert ("p", "No artifact here records errors by module.") in page.texts


@pytest.mark.parametrize(
    ("output", "word"), [("report.pdf", ".html, .json or .md"), ("report", "--format")]
)
def test_an_unknown_suffix_is_refused(
    output: str, word: str, artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / output
    assert run(["report", str(artifact), "-o", str(path)]) == 2
    assert word in capsys.readouterr().err and not path.exists()
    assert run(["report", str(artifact), "-o", str(path), "--format", "md"]) == 0
    assert path.read_text(encoding="utf-8").startswith("# coldpress report")


def test_a_directory_without_a_manifest_is_refused(
    tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert run(["report", str(tiny), "-o", str(tmp_path / "r.html")]) == 2
    err = capsys.readouterr().err
    assert "manifest.json" in err and "coldpress quantize" in err
    assert run(["report", str(tmp_path / "nowhere"), "-o", str(tmp_path / "r.html")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_report_never_lands_in_an_artifact(artifact: Path, capsys: Capture) -> None:
    assert run(["report", str(artifact), "-o", str(artifact / "report.html")]) == 2
    assert "outside" in capsys.readouterr().err
    assert check_files(artifact, read_manifest(artifact)) == []


def test_the_page_is_light_and_the_same_each_time(tmp_path: Path) -> None:
    parts = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.part{i}_proj" for i in range(6)]
    modules = [module(layer, part) for layer in range(30) for part in parts]
    folder = make_artifact(tmp_path / "a", modules, evaluation=EVALUATION)
    pages = [html_page([read_artifact(folder)]) for _ in range(2)]
    assert len(modules) == 300 and len(pages[0].encode()) < 200_000
    assert pages[0] == pages[1]


def test_directories_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    paths = [make_artifact(tmp_path / side / "int4") for side in ("left", "right")]
    assert [one.name for one in read_artifacts(paths)] == [str(path) for path in paths]


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("model.layers.3.mlp.up_proj", (3, "mlp.up_proj")),
        ("model.layers.3.mlp.experts.17.up_proj.weight", (3, "mlp.experts.*.up_proj")),
        ("blk.12.attn_q.weight", (12, "attn_q")),
        ("lm_head", None),
        ("model.embed_tokens.weight", None),
        ("model.layers.99999999999999999999.x", None),
    ],
)
def test_place(name: str, where: tuple[int, str] | None) -> None:
    assert place(name) == where
