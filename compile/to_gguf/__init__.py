"""Build GGUF files from Hugging Face checkpoints."""

from compile.to_gguf.build import GgufBuild, build_gguf, build_model
from compile.to_gguf.plan import GgufPlan, GgufRow, plan_gguf, plan_model

__all__ = [
    "GgufBuild",
    "GgufPlan",
    "GgufRow",
    "build_gguf",
    "build_model",
    "plan_gguf",
    "plan_model",
]
