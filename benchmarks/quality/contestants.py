"""Who takes part, what each makes, and whom it is measured against."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

ToolName = Literal["coldpress", "llm-compressor", "llama.cpp", "given"]
Container = Literal["hf", "gguf"]


@dataclass(frozen=True)
class Contestant:
    """One row.

    step, words: the process that makes it and what it is told beside model and tokens; no step for
    what lies there already at `path`. arithmetic: what transformers computes in. rival: the row
    that it is held against, with the `goal`: the largest ratio of KLDs that is hoped for.
    """

    name: str
    tool: ToolName
    container: Container
    makes: str
    step: str | None = None
    words: tuple[str, ...] = ()
    path: Path | None = None
    arithmetic: Literal["float32", "bfloat16"] = "float32"
    rival: str | None = None
    goal: float | None = None


FLOAT = Contestant("float", "given", "hf", "the checkpoint itself, by transformers")
FLOAT_BF16 = Contestant("float bfloat16", "given", "hf", "the same, computed in bfloat16: noise",
                        arithmetic="bfloat16")  # fmt: skip
FLOAT_GGUF = Contestant("llama.cpp f32", "llama.cpp", "gguf", "the same in float32, by llama.cpp")


@dataclass(frozen=True)
class Match:
    """A recipe of ours against a row of another tool. settings: `--set` of `coldpress quantize`."""

    recipe: str
    rival: str | None
    goal: float | None = None
    container: Container = "hf"
    settings: tuple[str, ...] = ()
    makes: str = ""


MATCHES = (
    Match("rtn-w4a16", "llm-compressor rtn", 1.0, makes="int4 sym g64, nearest"),
    Match("w4a16", "llm-compressor gptq", 0.5, makes="int4 sym g64"),
    Match("w4a16-fast", "llm-compressor gptq", makes="int4 sym g64"),
    Match("fp8-dynamic", "llm-compressor fp8", 1.0, makes="FP8 channel weights, tokens dynamic"),
    Match("w8a8", "llm-compressor w8a8", 0.5, makes="int8 channel weights, tokens dynamic"),
)
GGUF_TYPES = ("Q4_0", "Q4_K_M", "Q3_K_M")
GGUF_GOAL = 0.7
ALL_MATCHES = MATCHES + tuple(
    Match(f"gguf-{kind.lower()}", f"llama.cpp {kind}", GGUF_GOAL, "gguf", makes=kind)
    for kind in GGUF_TYPES
)
LLM_COMPRESSOR = {
    "rtn": "int4 sym g64, nearest",
    "gptq": "int4 sym g64, GPTQ",
    "fp8": "FP8_DYNAMIC",
    "w8a8": "SmoothQuant 0.8 + GPTQ, W8A8",
}


def default_contestants() -> list[Contestant]:
    """Every row of the comparison, each rival before those that are held against it."""
    others = [
        Contestant(f"llm-compressor {method}", "llm-compressor", "hf", makes, "llm_compressor",
                   (method,))
        for method, makes in LLM_COMPRESSOR.items()
    ]  # fmt: skip
    quantizers = [
        Contestant(f"llama.cpp {kind}", "llama.cpp", "gguf", f"{kind}, importance matrix",
                   "llama_cpp_quantizer", (kind,))
        for kind in GGUF_TYPES
    ]  # fmt: skip
    ours = [pressed(match) for match in ALL_MATCHES]
    return [FLOAT, FLOAT_BF16, *others, FLOAT_GGUF, *quantizers, *ours]


def pressed(match: Match) -> Contestant:
    """The row of a recipe, named by what was asked for."""
    name = " ".join(["coldpress", match.recipe, *match.settings])
    settings = [word for setting in match.settings for word in ("--set", setting)]
    container = ["--gguf"] if match.container == "gguf" else []
    words = (match.recipe, *container, *settings)
    return Contestant(
        name, "coldpress", match.container, match.makes or match.recipe, "press", words,
        rival=match.rival, goal=match.goal,
    )  # fmt: skip


def parse_recipe(text: str) -> Contestant:
    """A row from `RECIPE KEY=VALUE ...`; against the other tool's row of the shipped recipe."""
    recipe, *settings = text.split()
    known = next((match for match in ALL_MATCHES if match.recipe == recipe), Match(recipe, None))
    return pressed(replace(known, settings=tuple(settings), goal=None))


def parse_given(text: str) -> Contestant:
    """A row from `NAME=PATH`: a directory for transformers, or a GGUF file. Raises ValueError."""
    name, equals, place = text.partition("=")
    path = Path(place)
    if not equals or not path.exists():
        raise ValueError(f"'{text}': write NAME=PATH of a checkpoint or GGUF file that exists")
    container: Container = "gguf" if path.suffix == ".gguf" else "hf"
    return Contestant(name, "given", container, str(path), path=path)


def choose(contestants: Sequence[Contestant], patterns: Sequence[str]) -> list[Contestant]:
    """Those whose name fits a pattern; all of them where there is none. Raises ValueError."""
    for pattern in patterns:
        if not any(fnmatch(one.name, pattern) for one in contestants):
            names = ", ".join(one.name for one in contestants)
            raise ValueError(f"'{pattern}' fits no row; there are {names}")
    return [
        one
        for one in contestants
        if not patterns or any(fnmatch(one.name, pattern) for pattern in patterns)
    ]
