"""What quantizing or building would make, from headers alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coldpress.jsonable import to_jsonable
from coldpress.pressing import gguf_type


def plan_build(checkpoint: Path, target: str) -> dict[str, Any]:
    """The JSON of `coldpress plan --target`: the file's exact size and every tensor's type."""
    type_name = gguf_type(target)
    from compile.to_gguf.plan import plan_gguf

    plan = plan_gguf(checkpoint, type_name)
    return {
        "target": target,
        "family": plan.program.family,
        "bytes": plan.file_bytes,
        "bits_per_weight": plan.bits_per_weight,
        "notes": list(plan.notes),
        "tensors": [
            {
                "tensor": row.tensor,
                "shape": list(row.shape),
                "scheme": row.scheme,
                "type": row.type.name,
                "bytes": row.nbytes,
                "reason": row.reason,
            }
            for row in plan.rows
        ],
    }


def plan_quantize(model: Path, recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The JSON of `coldpress plan --recipe`."""
    from quant.preflight import plan_quantization
    from quant.recipe import load_recipe

    planned: dict[str, Any] = to_jsonable(plan_quantization(model, load_recipe(recipe, overrides)))
    return planned
