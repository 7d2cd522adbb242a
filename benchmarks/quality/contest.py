"""One model's contest: every contestant makes its artifact, and every artifact is scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.quality.contestants import FLOAT, FLOAT_BF16, FLOAT_GGUF, Contestant
from benchmarks.quality.scores import Float64, Summary, summarize
from benchmarks.quality.workshop import Done, Made, Tool, Workshop, given

WEIGHTS = (".safetensors", ".gguf")


class StepError(Exception):
    """A process failed; the message is the end of its log."""


@dataclass(frozen=True)
class Row:
    """What became of one contestant; `problem` where it did not come to a score.

    made: the process that made it, None for what was given.
    """

    contestant: Contestant
    python: str
    made: Done | None = None
    weight_bytes: int = 0
    summary: Summary | None = None
    scores: Float64 | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Files:
    """The same tokens for everyone: text, int64 [samples, tokens], int64 [windows, window]."""

    text: Made
    calibration: Made
    scored: Made


@dataclass
class Contest:
    """tools: by contestant's tool, and "transformers" for what the harness itself runs with."""

    name: str
    model: Made
    files: Files
    tools: Mapping[str, Tool]
    workshop: Workshop

    def row(self, contestant: Contestant) -> Row:
        """Make it and score it. A failure of either is told in the row."""
        tool = self.tools.get(self._tool_name(contestant))
        if tool is None:
            return Row(contestant, "", problem="left out: no environment was given for it")
        row = Row(contestant, tool.python)
        try:
            made, artifact = self._make(contestant, tool)
            row = replace(row, made=made, weight_bytes=weight_bytes(artifact.path))
            scores = self._score(contestant, artifact)
        except StepError as error:
            return replace(row, problem=str(error).removeprefix(f"{contestant.name}: "))
        return replace(row, scores=scores, summary=summarize(scores))

    def _tool_name(self, contestant: Contestant) -> str:
        if contestant.tool == "given":
            return "transformers" if contestant.container == "hf" else "llama.cpp"
        return contestant.tool

    def _make(self, contestant: Contestant, tool: Tool) -> tuple[Done | None, Made]:
        if contestant in (FLOAT, FLOAT_BF16):
            return None, self.model
        if contestant == FLOAT_GGUF:
            return self._float_gguf, self._float_gguf.made("gguf/model.gguf")
        if contestant.path is not None:
            return None, given(contestant.path)
        assert contestant.step is not None
        done = self._run(contestant.name, tool, contestant.step, self._words(contestant))
        place = "checkpoint" if contestant.container == "hf" else "gguf/model.gguf"
        return done, done.made(place)

    def _words(self, contestant: Contestant) -> Sequence[str | Made]:
        calibration = self.files.calibration
        if contestant.tool == "coldpress":
            return [self.model, self.files.text, calibration, *contestant.words]
        if contestant.tool == "llm-compressor":
            return [self.model, calibration, *contestant.words]
        model = self._float_gguf.made("gguf/model.gguf")
        importance = self._importance.made("importance.npz")
        return [model, importance, *contestant.words, str(self.workshop.threads)]

    def _score(self, contestant: Contestant, artifact: Made) -> Float64:
        words: list[str | Made] = [artifact, self._baseline.made(), self.files.scored]
        if contestant.container == "hf":
            tool, step = self.tools["transformers"], "read_transformers"
            if contestant.arithmetic != "float32":
                words.append(contestant.arithmetic)
        elif "llama.cpp" in self.tools:
            tool, step = self.tools["llama.cpp"], "read_llama_cpp"
            words.append(str(self.workshop.threads))
        else:
            raise StepError("made, but not scored: no llama.cpp was given to read it")
        done = self._run(f"score {contestant.name}", tool, step, words)
        scores: Float64 = np.load(done.output / "scores.npy")
        return scores

    @cached_property
    def _baseline(self) -> Done:
        words = [self.model, self.files.scored]
        return self._run("baseline", self.tools["transformers"], "baseline", words)

    @cached_property
    def _float_gguf(self) -> Done:
        return self._run("float GGUF", self.tools["coldpress"], "float_gguf", [self.model])

    @cached_property
    def _importance(self) -> Done:
        words = [self.model, self.files.calibration]
        return self._run("importance", self.tools["transformers"], "importance", words)

    def _run(self, name: str, tool: Tool, step: str, words: Sequence[str | Made]) -> Done:
        done = self.workshop.run(f"{self.name} {name}", tool, step, words)
        if done.problem is not None:
            raise StepError(f"{name}: {done.problem}")
        return done


def weight_bytes(path: Path) -> int:
    """Of the files that hold weights, in a directory or alone."""
    files = [path] if path.is_file() else path.iterdir()
    return sum(file.stat().st_size for file in files if file.suffix in WEIGHTS)
