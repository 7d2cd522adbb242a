"""The proof that an artifact means the same numbers as the checkpoint it was built from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.compare import TensorState, compare_weights
from compile.engine_file import ENGINE_FILE, check_engine, read_facts
from compile.families.decoder import EMBEDDINGS, HEAD
from compile.manifest import MANIFEST, FileProblem, check_files, read_manifest
from compile.model import Model
from compile.open_model import open_model
from compile.same_program import multiplied_weight, program_differences
from compile.without_rounding import without_input_rounding
from quant.format.errors import InputError

LogitsOf = Callable[[Model, Sequence[int]], npt.NDArray[np.float32]]
"""Logits [T, vocab] of every token of a prompt. Called in pairs: with a reference, then with the
artifact, which may be run in another way."""
Progress = Callable[[int, int, str], None]
"""Called with done, total and what: bytes while files are digested, then tensors."""

PROBE_TOKENS = 96
SAME_NUMBERS_BOUND = 0.01
ROUNDED_NUMBERS_BOUND = 0.05
CHAOTIC_KLD_BOUND = 0.1
"""Of two engines that round inputs alike: five times what the oracle's float32 and float64 differ
by on a model of 30 layers."""


@dataclass(frozen=True)
class LogitsCheck:
    """Logits of a fixed probe prompt, in the artifact and in the reference.

    bound: the largest `max_difference` that passes, None where integers were made at build time,
    one side alone rounds inputs, or rounded inputs amplify what else differs: what that costs is
    for an evaluation to say. kld_bound: the largest `mean_kld` that passes, where two engines round
    the inputs of the same integers. top1: share of tokens with the same argmax. schedule: in which
    steps the artifact ran them; engines: which executor ran either side; None where not told.
    """

    tokens: int
    max_difference: float
    mean_kld: float
    top1: float
    bound: float | None
    kld_bound: float | None = None
    schedule: Mapping[str, Any] | None = None
    engines: Mapping[str, str] | None = None

    @property
    def passed(self) -> bool:
        finite = np.isfinite(self.max_difference)
        near = self.bound is None or self.max_difference <= self.bound
        return bool(finite and near and (self.kld_bound is None or self.mean_kld <= self.kld_bound))


@dataclass(frozen=True)
class VerifyReport:
    """What was checked and what was found; `failures` is empty when all of it holds. engine: the
    artifact beside the oracle on the artifact's own numbers, where `logits` has no bound because
    the build rounded them."""

    artifact: str
    against: str | None
    files_checked: int
    file_problems: tuple[FileProblem, ...] = ()
    program_differences: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    tensors: tuple[TensorState, ...] = ()
    logits: LogitsCheck | None = None
    engine: LogitsCheck | None = None
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def counts(self) -> dict[str, int]:
        """Tensors in each state."""
        states = [tensor.state for tensor in self.tensors]
        return {state: states.count(state) for state in sorted(set(states))}

    @property
    def failures(self) -> list[str]:
        """One sentence for each thing that does not hold."""
        different = [tensor.name for tensor in self.tensors if tensor.state == "different"]
        sentences = [f"file {p.path} is {p.problem} ({p.detail})" for p in self.file_problems]
        sentences += self.program_differences
        sentences += [f"tensor {name} is missing" for name in self.missing]
        sentences += [f"tensor {name} is not in the reference" for name in self.unexpected]
        sentences += [f"tensor {name} holds other numbers" for name in different]
        if self.engine is not None and not self.engine.passed:
            found, bound = self.engine.max_difference, self.engine.bound
            sentences.append(
                f"logits of its engine differ by {found:.4g} from the oracle's on the same "
                f"numbers, more than {bound}"
            )
        if self.logits is not None and not self.logits.passed:
            found, bound = self.logits.max_difference, self.logits.bound
            sentences.append(
                f"logits differ by {found:.4g}, more than {bound}"
                if self.logits.kld_bound is None
                else f"logits differ by a KLD of {self.logits.mean_kld:.4g}, more than "
                f"{self.logits.kld_bound}"
            )
        return sentences

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        extra = {"passed": self.passed, "failures": self.failures, "counts": self.counts}
        return asdict(self) | extra


def verify(
    artifact: Path,
    against: Path | None = None,
    logits: LogitsOf | None = None,
    on_progress: Progress | None = None,
) -> VerifyReport:
    """Digests of every file that the manifest lists; with `against`, every tensor and the logits.

    `logits` is handed in because a Program is run by the runtime; it is called with one model at a
    time. Raises InputError when there is nothing to check, and whatever opening a model raises.
    """
    has_manifest = artifact.is_dir() and (artifact / MANIFEST).exists()
    if against is None and not has_manifest:
        raise InputError(
            f"{artifact}: has no {MANIFEST}; name the checkpoint that it must equal with --against"
        )
    problems: list[FileProblem] = []
    files_checked = 0
    if has_manifest:
        manifest = read_manifest(artifact)
        problems, files_checked = check_files(artifact, manifest, on_progress), len(manifest.files)
    if has_manifest and not problems and (artifact / ENGINE_FILE).exists():
        check_engine(artifact, read_facts(artifact))
    found = VerifyReport(str(artifact), None, files_checked, tuple(problems))
    if against is None or problems:
        return found
    return _against(found, open_model(artifact), open_model(against), logits, on_progress)


def _against(
    found: VerifyReport,
    stored: Model,
    reference: Model,
    logits: LogitsOf | None,
    on_progress: Progress | None,
) -> VerifyReport:
    pairs, missing, unexpected = match_names(reference, stored)
    differences = program_differences(reference.program, stored.program)
    tensors = []
    for done, (ours, theirs) in enumerate(pairs):
        if on_progress is not None:
            on_progress(done, len(pairs), theirs)
        weights = multiplied_weight(reference, theirs), multiplied_weight(stored, ours)
        tensors.append(compare_weights(theirs, *weights))
    if on_progress is not None:
        on_progress(len(pairs), len(pairs), "tensors")
    comparable = not differences and not missing and not unexpected
    check = engine = None
    if logits is not None and comparable:
        states: set[str] = {tensor.state for tensor in tensors}
        check = check_logits(_as_told(reference, stored), stored, logits, states)
        if "requantized" in states and not stored.program.rounded_inputs():
            # What rounding costs has no bound, but the engine still has one.
            engine = check_logits(stored, stored, logits, {"equal"})
    return VerifyReport(
        artifact=found.artifact,
        against=str(reference.path),
        files_checked=found.files_checked,
        program_differences=tuple(differences),
        missing=missing,
        unexpected=unexpected,
        tensors=tuple(tensors),
        logits=check,
        engine=engine,
        notes=(
            *stored.notes,
            *reference.notes,
            *_rounding_notes(stored, reference),
            *_engine_notes(stored),
            *_again_notes(tensors),
        ),
    )


def match_names(
    reference: Model, stored: Model
) -> tuple[list[tuple[str, str]], tuple[str, ...], tuple[str, ...]]:
    """(pairs of a stored and a reference name, missing, unexpected). Where one side ties its head
    and the other stores it, the stored head must equal the table."""
    ours, theirs = stored.program.weights(), reference.program.weights()
    pairs = [(name, name) for name in theirs if name in ours]
    missing, unexpected = theirs.keys() - ours.keys(), ours.keys() - theirs.keys()
    if HEAD in missing and stored.program.tied_embeddings:
        pairs.append((EMBEDDINGS, HEAD))
        missing = missing - {HEAD}
    if HEAD in unexpected and reference.program.tied_embeddings:
        pairs.append((HEAD, EMBEDDINGS))
        unexpected = unexpected - {HEAD}
    return pairs, tuple(sorted(missing)), tuple(sorted(unexpected))


def _as_told(reference: Model, stored: Model) -> Model:
    """The reference as far as the artifact's container can tell it: without its rounded inputs,
    where the container has no word for these."""
    if stored.program.rounded_inputs() or not reference.program.rounded_inputs():
        return reference
    return without_input_rounding(reference)


def check_logits(
    reference: Model, stored: Model, logits_of: LogitsOf, states: set[str]
) -> LogitsCheck:
    """Bounds are shares of the standard deviation of the reference logits. The same numbers may
    be summed in another order, which in float32 stays far below one part in a hundred; rounding
    weights to 16 bits moves each by at most 2**-9 of itself, and the logits by a few such parts."""
    tokens = probe_tokens(reference)
    expected = logits_of(reference, tokens).astype(np.float64)
    found = logits_of(stored, tokens).astype(np.float64)
    share, kld_bound = _bounds(reference, stored, states)
    log_p, log_q = _log_softmax(expected), _log_softmax(found)
    return LogitsCheck(
        tokens=len(tokens),
        max_difference=float(np.abs(found - expected).max()),
        mean_kld=float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean()),
        top1=float((expected.argmax(-1) == found.argmax(-1)).mean()),
        bound=None if share is None else share * float(expected.std()),
        kld_bound=kld_bound,
    )


def _bounds(reference: Model, stored: Model, states: set[str]) -> tuple[float | None, float | None]:
    """Of the largest difference, in standard deviations of the logits, and of the mean KLD."""
    if states & {"requantized", "different"} or _rounding_notes(stored, reference):
        return None, None
    # However small a difference is, it moves some rounded input by a whole step, and the next
    # layer's: only one engine twice gives the same.
    chaotic = bool(reference.program.rounded_inputs())
    if "rounded" in states or stored.kind == "tensorrt":
        # An engine's products are rounded to 16 bits, as weights may be.
        return None if chaotic else ROUNDED_NUMBERS_BOUND, None
    if chaotic and stored.kind != reference.kind:
        return None, CHAOTIC_KLD_BOUND
    return SAME_NUMBERS_BOUND, None


def _rounding_notes(stored: Model, reference: Model) -> tuple[str, ...]:
    """A container that cannot say how inputs are rounded holds the same weights all the same."""
    ours, theirs = stored.program.rounded_inputs(), reference.program.rounded_inputs()
    if ours == theirs:
        return ()
    compared = "their logits differ by that" if ours else "the logits compared are without"
    return (
        f"inputs that the artifact rounds: {ours or 'none'}; the reference: {theirs or 'none'}; "
        f"{compared}",
    )


def _engine_notes(stored: Model) -> tuple[str, ...]:
    if stored.kind != "tensorrt":
        return ()
    return (
        "nobody can read numbers back from an engine: compared are those beside the graph that it "
        "was built from, whose digest the manifest keeps",
    )


def _again_notes(tensors: Sequence[TensorState]) -> list[str]:
    again = [t for t in tensors if t.state == "requantized" and t.rms_error is not None]
    if not again:
        return []
    worst = max(again, key=lambda tensor: tensor.rms_error or 0)
    notes = [
        f"{len(again)} tensors were rounded by the build: relative rms error up to "
        f"{worst.rms_error:.2g} ({worst.name})"
    ]
    foreign = sum(tensor.encoder == "another" for tensor in again)
    if foreign:
        notes.append(
            f"{foreign} of them by another encoder than this one: each code is the nearest on its "
            "grid, but whether that grid is what was meant cannot be checked"
        )
    return notes


def probe_tokens(model: Model) -> list[int]:
    """The same tokens on every machine, spread over the vocabulary."""
    sizes = model.program.sizes
    count = min(PROBE_TOKENS, sizes.max_positions)
    return [(i + 1) * 2_654_435_761 % (1 << 32) % sizes.vocab_size for i in range(count)]


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    normalized: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalized
