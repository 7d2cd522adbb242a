"""What a run did, module by module; written beside the weights as quantization_report.json."""

from dataclasses import dataclass

REPORT_NAME = "quantization_report.json"
REPORT_VERSION = 1


@dataclass(frozen=True)
class ModuleReport:
    """How one linear ended up.

    state: "as asked" | "damping raised to X" | "fallback rtn: WHY" | "kept in 16 bit: WHY" |
    "statistics shared with its layer: N tokens of its own", for experts that saw too few tokens.

    weight_error: |dW| / |W|. output_error: sqrt(tr(dW H dW^T) / tr(W H W^T)), None without
    calibration. dead_columns: inputs that were zero for every calibration token. condition: a lower
    bound of the damped Hessian's condition number. clip_ratio: share of the weights that lie beyond
    what their group can hold. transform: what was done to the weight before it was rounded.
    """

    module: str
    scheme: str
    algorithm: str
    state: str
    weight_error: float | None
    output_error: float | None
    damping: float | None
    dead_columns: int
    tokens: int
    digest: str | None
    condition: float | None = None
    clip_ratio: float | None = None
    transform: str = ""


@dataclass(frozen=True)
class QuantizeReport:
    """bytes: size of the safetensors files. bits_per_weight: of everything that is stored."""

    version: int
    model: str
    recipe: dict[str, object]
    calibration: dict[str, object]
    threads: int
    bytes: int
    parameters: int
    bits_per_weight: float
    seconds: float
    notes: tuple[str, ...]
    modules: tuple[ModuleReport, ...]
