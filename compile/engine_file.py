"""A TensorRT engine as a file of an artifact: what is known about it, and whether it is still it.

An engine is a cache entry, never the source of truth: it fits one version of its builder and the
GPUs that it was built for. The ONNX graph and the weights beside it are kept, whatever happens.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from compile.manifest import MANIFEST, file_sha256, read_manifest
from compile.onnx_contract import GRAPH_FILE
from quant.format.errors import FileFormatError, InputError

ENGINE_FILE = "model.engine"
END_BYTES = 1 << 20
Builder = Literal["tensorrt_rtx", "tensorrt"]
BUILDERS: tuple[Builder, ...] = ("tensorrt_rtx", "tensorrt")


@dataclass(frozen=True)
class EngineLimits:
    """The largest step that an engine takes, and the sizes of its pages.

    tokens: T of docs/ONNX.md, in one run. sequences: B. context: longest past and present together,
    in tokens. page_size: tokens of a page, as served; smaller ones, down to least_page_size, are
    for tests.
    """

    context: int
    tokens: int = 256
    sequences: int = 16
    page_size: int = 32
    least_page_size: int = 8

    def past_pages(self, page_size: int) -> int:
        return -(-self.context // page_size)


@dataclass(frozen=True)
class EngineFacts:
    """What the manifest keeps of an engine.

    target: what `--target` built it. cards: compute capabilities it runs on, such as "sm89".
    graph_sha256: of the ONNX graph it was built from. data_bytes: of the weights beside it.
    profile: least, usual and largest size of each dimension of docs/ONNX.md. engine_bytes and
    ends_sha256: of the file, and of its first and last MiB, which can be checked at once.
    packed_bytes: of all weights in the types that the engine holds them in.
    """

    target: str
    builder: Builder
    builder_version: str
    cards: tuple[str, ...]
    graph_sha256: str
    data_bytes: int
    limits: EngineLimits
    profile: Mapping[str, tuple[int, int, int]]
    engine_bytes: int
    ends_sha256: str
    packed_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return asdict(self)


def ends_sha256(path: Path) -> str:
    """SHA-256 of the first and the last MiB of a file: cheap, however large it is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(END_BYTES))
        file.seek(max(0, size - END_BYTES))
        digest.update(file.read(END_BYTES))
    return digest.hexdigest()


def rebuild_command(target: str) -> str:
    """What makes an engine anew from the graph that the artifact keeps."""
    return f"coldpress build ARTIFACT -o DIR --target {target}"


def read_facts(directory: Path) -> EngineFacts:
    """What the manifest of an artifact says of its engine. Raises InputError, FileFormatError."""
    if not (directory / MANIFEST).is_file():
        raise InputError(
            f"{directory}: holds {ENGINE_FILE} and no {MANIFEST}, so nothing tells what the engine "
            f"was built for; build it again with: {rebuild_command('tensorrt:smNN')}"
        )
    fields = read_manifest(directory).engine
    try:
        assert fields is not None, "no table"
        assert fields["limits"].keys() == EngineLimits.__dataclass_fields__.keys()
        limits = EngineLimits(**fields["limits"])
        profile = {name: tuple(sizes) for name, sizes in fields["profile"].items()}
        facts = EngineFacts(**{**fields, "limits": limits, "profile": profile})
        facts = EngineFacts(**{**vars(facts), "cards": tuple(facts.cards)})
        _check_types(facts)
    except (AssertionError, KeyError, TypeError, AttributeError, ValueError) as error:
        problem = "does not tell what the engine was built for ('engine' is missing or malformed)"
        raise FileFormatError(directory / MANIFEST, problem) from error
    return facts


def _check_types(facts: EngineFacts) -> None:
    numbers = (*vars(facts.limits).values(), facts.engine_bytes, facts.data_bytes)
    assert all(type(number) is int and number > 0 for number in numbers)
    assert all(len(s) == 3 and all(type(n) is int for n in s) for s in facts.profile.values())
    words = (facts.target, facts.builder_version, facts.ends_sha256, *facts.cards)
    assert facts.builder in BUILDERS and all(isinstance(word, str) for word in words)


def check_engine(directory: Path, facts: EngineFacts) -> Path:
    """The engine's path, if the file is the one that `facts` tell of and the graph beside it is the
    one that it was built from. Reads two MiB and the graph; the whole is for `coldpress verify`."""
    engine, graph = directory / ENGINE_FILE, directory / GRAPH_FILE
    command = rebuild_command(facts.target)
    if engine.is_symlink() or not engine.is_file():
        raise InputError(f"{engine}: is missing or a link; build it again with: {command}")
    size = engine.stat().st_size
    if size != facts.engine_bytes:
        problem = (
            f"has {size} bytes instead of {facts.engine_bytes}; build it again with: {command}"
        )
        raise FileFormatError(engine, problem)
    if ends_sha256(engine) != facts.ends_sha256:
        problem = f"is not the engine that {MANIFEST} tells of; build it again with: {command}"
        raise FileFormatError(engine, problem)
    if file_sha256(graph) != facts.graph_sha256:
        problem = f"is not the graph that the engine was built from; build again with: {command}"
        raise FileFormatError(graph, problem)
    return engine


def check_machine(facts: EngineFacts, builder_version: str, card: str) -> None:
    """Raises InputError where an engine cannot run: another version, or another GPU."""
    if builder_version != facts.builder_version:
        raise InputError(
            f"the engine was built by {facts.builder} {facts.builder_version}, and "
            f"{builder_version} is installed; build it again with: {rebuild_command(facts.target)}"
        )
    if card not in facts.cards:
        built = ", ".join(facts.cards)
        target = "tensorrt" if facts.builder == "tensorrt" else f"tensorrt:{card}"
        raise InputError(
            f"the engine was built for {built} and this GPU is {card}; build it again with: "
            f"{rebuild_command(target)}"
        )
