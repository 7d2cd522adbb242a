"""Reads the artifacts of a report: manifests, quantization reports, headers, and measurements."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.report.artifact import Artifact, Evaluation, Histogram, Module, Run, Tensor
from coldpress.report.fields import number, numbers, read_table, sub, whole, word
from quant.format.errors import FileFormatError, InputError
from quant.report import REPORT_NAME

if TYPE_CHECKING:
    from compile.manifest import Manifest

_WORDS = ("module", "scheme", "algorithm", "state")


def read_artifacts(paths: Sequence[Path]) -> list[Artifact]:
    """The artifacts that `paths` name; a JSON file belongs to the directory named before it.

    Raises InputError for a directory without a manifest, and for a measurement of other bytes.
    """
    found: list[Artifact] = []
    for path in paths:
        if path.is_dir():
            found.append(read_artifact(path))
        elif not path.is_file():
            raise InputError(f"{path}: no such file or directory")
        elif not found:
            raise InputError(f"{path}: name the directory that it was measured on before it")
        else:
            found[-1] = _measured(found[-1], path)
    if not found:
        raise InputError("a report needs at least one artifact directory")
    return _named(found)


def read_artifact(path: Path) -> Artifact:
    """One directory that `coldpress quantize` or `coldpress build` wrote."""
    from compile.manifest import MANIFEST, read_manifest

    if not (path / MANIFEST).is_file():
        raise InputError(
            f"{path}: holds no {MANIFEST}, so there is nothing to report; name a directory that "
            "'coldpress quantize' or 'coldpress build' wrote"
        )
    manifest = read_manifest(path)
    tensors, bits_per_weight, missing = _tensors(path)
    modules = _modules(path / REPORT_NAME)
    if not modules:
        modules, sentence = _recorded_modules(manifest)
        missing = [sentence, *missing]
    return Artifact(
        name=path.resolve().name,
        path=path,
        kind=manifest.kind,
        made_from=tuple(
            word(source, "name") or "?" for source in (*manifest.sources, *manifest.parents)
        ),
        recipe=word(manifest.recipe or {}, "description"),
        calibration=word(manifest.calibration or {}, "source"),
        bytes=_payload_bytes(manifest),
        bits_per_weight=bits_per_weight,
        modules=tuple(modules),
        tensors=tuple(tensors),
        evaluation=_evaluation(manifest.evaluation, MANIFEST) if manifest.evaluation else None,
        runs=(),
        missing=tuple(missing),
    )


def _payload_bytes(manifest: "Manifest") -> int:
    """Bytes of the files that hold weights, by the manifest."""
    for suffix in (".gguf", ".safetensors"):
        sizes = [entry.bytes for name, entry in manifest.files.items() if name.endswith(suffix)]
        if sizes:
            return sum(sizes)
    return 0


def _tensors(path: Path) -> tuple[list[Tensor], float | None, list[str]]:
    """Every tensor from the headers; a payload that does not open is told, not fatal."""
    from coldpress.inspection import inspect_model

    try:
        found = inspect_model(path)
    except InputError as error:
        return [], None, [f"Bits per weight are unknown: {error}."]
    tensors = []
    for tensor in found["tensors"]:
        parameters = 1
        for size in tensor["shape"]:
            parameters *= size
        tensors.append(Tensor(tensor["name"], tensor["scheme"], parameters, tensor["bytes"]))
    return tensors, found["bits_per_weight"], []


def _modules(path: Path) -> list[Module]:
    if not path.is_file():
        return []
    entries = read_table(path).get("modules")
    if not isinstance(entries, list):
        raise FileFormatError(path, "has no list 'modules'")
    return [_module(path, entry) for entry in entries]


def _module(path: Path, entry: Any) -> Module:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in _WORDS):
        raise FileFormatError(path, f"has a module without one of {', '.join(_WORDS)}")
    figures: dict[str, float | int | None] = {}
    for key, value in entry.items():
        if value is None:
            figures[key] = None
        elif isinstance(value, int | float) and not isinstance(value, bool):
            figures[key] = whole(entry, key) if isinstance(value, int) else number(entry, key)
    figures.pop("digest", None)
    return Module(entry["module"], entry["scheme"], entry["algorithm"], entry["state"], figures)


def _recorded_modules(manifest: "Manifest") -> tuple[list[Module], str]:
    """What the manifest alone says of the modules, and the sentence about what it does not."""
    modules = []
    for name, entry in (manifest.modules or {}).items():
        if isinstance(entry, dict) and isinstance(entry.get("state"), str):
            scheme, algorithm = word(entry, "scheme") or "?", word(entry, "algorithm") or "?"
            modules.append(Module(name, scheme, algorithm, entry["state"], {}))
    if modules:
        return modules, f"Errors by module are unknown: there is no {REPORT_NAME}."
    origin = "it was built, not quantized" if manifest.kind == "gguf" else f"no {REPORT_NAME}"
    return [], f"Errors and states by module are not recorded here: {origin}."


def _measured(artifact: Artifact, path: Path) -> Artifact:
    """The artifact with what `coldpress --json eval` or `bench` wrote about it."""
    table = read_table(path)
    is_bench, is_eval = "runs" in table, "perplexity" in table
    if is_bench == is_eval:
        raise FileFormatError(
            path, "is no output of 'coldpress --json eval' or 'coldpress --json bench'"
        )
    size = whole(sub(table, "limits"), "weight_bytes") if is_bench else whole(table, "bytes")
    if size != artifact.bytes:
        raise InputError(
            f"{path}: measured {size} bytes of weights, but {artifact.path} holds "
            f"{artifact.bytes}; name the directory that it was measured on before it"
        )
    if is_bench:
        return replace(artifact, runs=_runs(path, table["runs"]))
    return replace(artifact, evaluation=_evaluation(table, path.name))


def _runs(path: Path, runs: Any) -> tuple[Run, ...]:
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise FileFormatError(path, "has no list of 'runs'")
    return tuple(
        Run(
            whole(run, "concurrency"),
            number(run, "prefill_tokens_per_second"),
            number(run, "decode_tokens_per_second"),
        )
        for run in runs
    )


def _evaluation(table: Mapping[str, Any], source: str) -> Evaluation:
    divergence, agreement = sub(table, "kld"), sub(table, "top1")
    ratio = sub(table, "ln_ppl_ratio")
    return Evaluation(
        source=source,
        perplexity=number(table, "perplexity"),
        perplexity_se=number(table, "perplexity_se"),
        ppl_ratio=number(table, "ppl_ratio"),
        baseline_perplexity=number(table, "baseline_perplexity"),
        kld=number(divergence, "mean"),
        kld_se=number(divergence, "se"),
        kld_p99=number(divergence, "p99"),
        kld_max=number(divergence, "max"),
        top1=number(agreement, "mean"),
        top1_se=number(agreement, "se"),
        tokens=whole(table, "tokens"),
        window=whole(table, "window"),
        protocol=word(table, "protocol"),
        text=word(table, "text_sha256"),
        kld_median=number(divergence, "median"),
        kld_p90=number(divergence, "p90"),
        kld_p95=number(divergence, "p95"),
        kld_p999=number(divergence, "p999"),
        delta_p_rms=number(sub(table, "delta_p"), "rms"),
        ln_ppl_ratio=number(ratio, "mean"),
        ln_ppl_ratio_se=number(ratio, "se"),
        intervals=_intervals(sub(table, "intervals")),
        histogram=_histogram(sub(table, "kld_histogram")),
    )


def _intervals(table: Mapping[str, Any]) -> dict[str, tuple[float | None, float | None]]:
    found = {}
    for name, ends in table.items():
        if isinstance(ends, list) and len(ends) == 2:
            pair = {"low": ends[0], "high": ends[1]}
            found[name] = (number(pair, "low"), number(pair, "high"))
    return found


def _histogram(table: Mapping[str, Any]) -> Histogram | None:
    """None for what is no histogram: edges that do not rise, counts that do not fit them."""
    edges, counts = numbers(table, "edges"), numbers(table, "counts")
    rising = all(low < high for low, high in pairwise(edges))
    whole_counts = all(count >= 0 and count == int(count) for count in counts)
    if len(edges) < 2 or edges[0] <= 0 or not rising or not whole_counts or not sum(counts):
        return None
    if len(counts) != len(edges) + 1:
        return None
    return Histogram(tuple(edges), tuple(int(count) for count in counts))


def _named(artifacts: list[Artifact]) -> list[Artifact]:
    """Told apart by their paths where two directories have the same name."""
    names = [artifact.name for artifact in artifacts]
    return [
        replace(one, name=str(one.path)) if names.count(one.name) > 1 else one for one in artifacts
    ]


def to_json(artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """The report as data: `coldpress report -o report.json`."""
    return {
        "version": 1,
        "notes": comparability(artifacts),
        "artifacts": [asdict(artifact) for artifact in artifacts],
    }


def comparability(artifacts: Sequence[Artifact]) -> list[str]:
    """A warning where evaluations were made under conditions that differ."""
    conditions = {
        (e.tokens, e.window, e.protocol, e.text, e.baseline_perplexity)
        for e in (artifact.evaluation for artifact in artifacts)
        if e is not None
    }
    if len(conditions) < 2:
        return []
    return [
        "The evaluations differ in their text, protocol or baseline, so their figures "
        "cannot be compared with each other."
    ]
