"""Every kernel compiled for GPUs that are not there, down to machine code.

    python -m benchmarks.on_gpu.compiling [--arch 80,89,90] [--models NAME,...]

The executor runs models of real shape over tensors without memory; instead of being launched, each
kernel is compiled as that launch would compile it. Prints what each kernel takes of a processor:
registers spilled to memory and shared memory, and what the compiler refused. Exit code 1 if it
refused anything, or if a kernel asks for more shared memory than the chip has.
"""

import argparse
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.on_gpu.made_up import config_of, model_of
from benchmarks.on_gpu.sizes import REAL
from compile.model import Model
from quant.format.scheme import (
    ActivationScheme,
    CodebookScheme,
    FloatScheme,
    IntScheme,
    PerBlock,
    PerChannel,
    PerGroup,
    Scheme,
)
from runtime.engine.batch import Follows, LogitEdits, PlainDraw, StepBatch
from runtime.executors.cuda import CudaExecutor
from runtime.kernels.triton.cache import CacheNumber
from runtime.kernels.triton.tuning import CHIPS

PAGE = 32
VOCAB = 8192
"""More than a block of the kernels that read logits."""
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    **{name: config_of(shape) for name, shape in REAL.shapes.items()},
    "smollm2": config_of({
        "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
        "num_key_value_heads": 3,
    }),
    "qwen3-8b": config_of({
        "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128,
    }) | {"model_type": "qwen3"},
    "qwen3-moe": config_of({
        "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": 8, "num_experts_per_tok": 4,
        "moe_intermediate_size": 768, "norm_topk_prob": True,
    }) | {"model_type": "qwen3_moe"},
    "gemma2-2b": config_of({
        "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
    }) | {
        "model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    },
}  # fmt: skip
"""Of one layer each, and with few experts and a small vocabulary."""
SCHEMES: Mapping[str, Scheme] = {
    "bfloat16": FloatScheme("bfloat16"),
    "w4a16-128": IntScheme(4, True, PerGroup(128)),
    "w4a16-32-zero-points": IntScheme(4, False, PerGroup(32)),
    "w8a16-64": IntScheme(8, True, PerGroup(64)),
    "q4_k": IntScheme(4, False, PerGroup(32), ggml_type="Q4_K"),
    "q6_k": IntScheme(6, True, PerGroup(16), ggml_type="Q6_K"),
    "w8a8": IntScheme(8, True, PerChannel(), ActivationScheme("int8")),
    "fp8": CodebookScheme("e4m3", PerChannel(), activation=ActivationScheme("e4m3")),
    "fp8-blocks": CodebookScheme(
        "e4m3", PerBlock(128, 128), activation=ActivationScheme("e4m3", PerGroup(128))
    ),
    "w4a8-fp8": IntScheme(4, True, PerGroup(128), ActivationScheme("e4m3")),
}
STEPS = ((1, 1), (20, 1), (64, 1), (1, 512))
CACHES: tuple[CacheNumber, ...] = ("bfloat16", "int8", "e4m3")
E4M3_SINCE = 89
"""The first architecture that has these numbers."""

PROCESSORS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}
"""Of A100, A40, RTX 4090, H100, B200 and RTX 5090, which sums are split for."""


@dataclass(frozen=True)
class Compiled:
    """One kernel as one launch asks for it. shared, spilled: bytes; registers: of a thread.
    refused: why there is no machine code; None where there is."""

    kernel: str
    arch: int
    options: str
    shared: int = 0
    registers: int = 0
    spilled: int = 0
    refused: str | None = None

    @property
    def fits(self) -> bool:
        return self.refused is None and self.shared <= CHIPS[divmod(self.arch, 10)].shared


@contextlib.contextmanager
def compiling(arch: int, note: Callable[[Compiled], None]) -> Iterator[None]:
    """Within, a launch compiles for `arch`, does nothing else, and is noted once for each set of
    options. Results of kernels are unwritten memory."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from runtime.kernels.triton import tuning

    class Driver:
        def get_current_device(self) -> int:
            return arch

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", arch, 32)

    seen: set[str] = set()
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        known = self.device_caches[arch][0]
        before = len(known)
        said = io.StringIO()
        chosen = " ".join(f"{name}={value}" for name, value in options.items())
        try:
            with contextlib.redirect_stdout(said):
                kernel = launch(self, *args, grid=grid, warmup=True, **options)
        except Exception as error:  # whatever the compiler raises
            text = f"{type(error).__name__}: {error}"
            if self.__name__ + text not in seen:
                seen.add(self.__name__ + text)
                note(Compiled(self.__name__, arch, chosen, refused=text))
            return
        if len(known) > before:
            log = said.getvalue()
            note(
                Compiled(
                    self.__name__,
                    arch,
                    chosen,
                    kernel.metadata.shared,
                    _last(r"Used (\d+) registers", log),
                    _last(r"(\d+) bytes spill stores", log),
                )
            )

    with (
        patch.object(driver, "_active", Driver()),
        patch.object(JITFunction, "run", compile_only),
        patch.object(tuning, "num_processors", lambda: PROCESSORS[arch]),
        patch.object(tuning, "capability", lambda: divmod(arch, 10)),
        patch.object(knobs.nvidia, "dump_ptxas_log", True),
        patch.object(knobs.compilation, "always_compile", True),
    ):
        yield


def _last(pattern: str, text: str) -> int:
    numbers = re.findall(pattern, text)
    return int(numbers[-1]) if numbers else 0


def compile_model(model: Model, cache: CacheNumber, steps: Iterable[tuple[int, int]]) -> None:
    """All that steps of (sequences, tokens of each) launch, within `compiling`."""
    executor = CudaExecutor(model, num_pages=2, page_size=PAGE, device="meta", cache=cache)
    for sequences, tokens in steps:
        count = sequences * tokens
        starts = np.arange(sequences + 1, dtype=np.int32) * tokens
        batch = StepBatch(
            np.zeros(count, np.int32),
            np.tile(np.arange(tokens, dtype=np.int32), sequences),
            starts,
            np.ones((sequences, -(-tokens // PAGE)), np.int32),
            starts[1:] - 1,
        )
        one = np.ones(1, np.float32)
        words = np.zeros(-(-executor.vocab_size // 32), np.int32)
        edits = LogitEdits(np.zeros(1, np.int32), one, one, one, one, words)
        first = executor.begin(batch, [PlainDraw(1.0, 5, 0.9, 0.1, 0.5)] * sequences)
        if tokens == 1:
            follows = Follows(first, np.arange(sequences, dtype=np.int32))
            edited = PlainDraw(0.0, 0, 1.0, 0.0, 0.5, edits)
            executor.begin(batch, [edited] * sequences, follows)


def compile_all(
    arch: int,
    models: Sequence[str],
    schemes: Sequence[str],
    note: Callable[[Compiled], None],
    caches: Sequence[CacheNumber] = CACHES,
    steps: Sequence[tuple[int, int]] = STEPS,
) -> None:
    """Every kernel of these models, the first scheme with every cache that the architecture has."""
    with compiling(arch, note):
        for name in models:
            config = {**CONFIGS[name], "num_hidden_layers": 1, "vocab_size": VOCAB}
            for scheme in schemes:
                stored = SCHEMES[scheme]
                if arch < E4M3_SINCE and "e4m3" in f"{stored} {getattr(stored, 'activation', '')}":
                    continue
                model = model_of(name, config, stored, blank=True)
                for cache in caches if scheme == schemes[0] else caches[:1]:
                    if cache != "e4m3" or arch >= E4M3_SINCE:
                        compile_model(model, cache, steps)


def main() -> int:
    """0; 1 where a kernel has no machine code or does not fit."""
    assert not os.environ.get("TRITON_INTERPRET"), "the interpreter compiles nothing"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--arch", default="80,89,90")
    parser.add_argument("--models", default=",".join(CONFIGS))
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--caches", default=",".join(CACHES))
    parser.add_argument(
        "--steps", default=",".join(f"{a}x{b}" for a, b in STEPS), help="sequences x tokens of each"
    )
    arguments = parser.parse_args()
    steps = [(int(a), int(b)) for a, b in (s.split("x") for s in arguments.steps.split(","))]
    chosen = (getattr(arguments, name).split(",") for name in ("models", "schemes", "caches"))
    models, schemes, caches = chosen
    found: list[Compiled] = []

    def note(each: Compiled) -> None:
        print(json.dumps(asdict(each)), flush=True)
        found.append(each)

    for arch in arguments.arch.split(","):
        compile_all(int(arch), models, schemes, note, caches, steps)
    wrong = [each for each in found if not each.fits]
    spilling = [each for each in found if each.spilled]
    print(
        f"{len(found)} kernels, {len(wrong)} of them refused or too large, {len(spilling)} spill "
        f"registers, {max((each.spilled for each in spilling), default=0)} bytes at most",
        file=sys.stderr,
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
