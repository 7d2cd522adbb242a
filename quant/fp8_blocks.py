"""Which linears servers can run with FP8 weights in blocks of 128x128.

All readers hold blocks at the edges that are smaller; what they cannot do is to run them
everywhere. Inputs are rounded in runs of 128 and nobody rounds a shorter run, so a row must be
whole blocks. Outputs may end within a block, but not where a server stacks linears that share an
input: the next one would start within it. A linear that does not fit gets one scale per row, and
inputs one per token, which every server with FP8 runs as well, at as many bits.
Source: vLLM (validate_fp8_block_shape, per_token_group_quant_fp8), the compressed-tensors package
(_process_group), transformers (the dequantization of its fine-grained FP8).
"""

import re
from collections.abc import Mapping

from quant.tasks import FUSED

BLOCK = 128
_EXPERT = re.compile(r".*\.experts\.\d+\..+")


def unfit_for_blocks(shapes: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Why each linear cannot have blocks, by module; without those that can.

    shapes: [out, in] of all linears that are to have them. Linears that share a scheme in a
    server fall back together: those that it stacks, and all of a model that has experts.
    """
    unfit = {
        module: f"blocks of {BLOCK} do not fill its {columns} inputs"
        for module, (_, columns) in shapes.items()
        if columns % BLOCK
    }
    for members in _stacks(shapes):
        partial = next((name for name in members if shapes[name][0] % BLOCK), None)
        if partial is None:
            continue
        why = f"servers stack it, and {shapes[partial][0]} outputs of {partial}"
        unfit = dict.fromkeys(members, f"{why} end within a block of {BLOCK}") | unfit
    if unfit and any(map(_EXPERT.fullmatch, shapes)):
        why = f"servers take one scheme next to experts, and {next(iter(unfit))}"
        unfit = dict.fromkeys(shapes, f"{why} cannot have blocks") | unfit
    return unfit


def _stacks(modules: Mapping[str, object]) -> list[list[str]]:
    """Modules that a server makes one matrix of, two or more each."""
    stacks: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for module in modules:
        parent, _, name = module.rpartition(".")
        for names in FUSED:
            if name in names:
                stacks.setdefault((parent, names), []).append(module)
    return [members for members in stacks.values() if len(members) > 1]
