"""Build GGUF files from Hugging Face checkpoints."""

from compile.to_gguf.build import GgufBuild, build_gguf
from compile.to_gguf.plan import GgufPlan, GgufRow, plan_gguf

__all__ = ["GgufBuild", "GgufPlan", "GgufRow", "build_gguf", "plan_gguf"]
