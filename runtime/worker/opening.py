"""What a worker opens of a model: the executor, and the text side only for grammars."""

import contextlib
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.machine import give_back_freed
from runtime.worker.spec import ModelSpec

if TYPE_CHECKING:
    from runtime.loading import LoadedExecutor
    from runtime.text.grammar.compiler import GrammarCompiler
    from runtime.text.tokenizer import Tokenizer
    from runtime.worker.budget import Budget


@dataclass(frozen=True)
class Opened:
    """A model that is loaded. budget: the arithmetic of what it takes, None where nobody knows.
    draft: what guesses for it."""

    executor: "LoadedExecutor"
    budget: "Budget | None" = None
    draft: "LoadedExecutor | None" = None


def import_ahead() -> None:
    """What nearly every model needs, while the front still finds out which one it is to be."""
    for name in ("compile.open_model", "runtime.loading", "runtime.executors.cpu.executor"):
        with contextlib.suppress(ImportError):  # whoever needs it says so
            import_module(name)


def load_model(spec: ModelSpec) -> Opened:
    """What runs the model; raises what `open_model` and `load_executor` do, and InputError with
    the arithmetic where memory does not suffice."""
    from compile.open_model import open_model
    from runtime.draft_loading import load_draft
    from runtime.loading import load_executor
    from runtime.machine import available_memory_bytes
    from runtime.worker.budget import plan_memory

    model = open_model(spec.path)
    budget = plan_memory(spec, model, available_memory_bytes())
    machine: dict[str, Any] = dict(spec.machine)
    executor = load_executor(
        model,
        kv_cache_bytes=spec.kv_cache_bytes if budget is None else budget.pool,
        max_step_tokens=spec.engine.max_step_tokens,
        **machine,
    )
    draft = load_draft(spec.engine, executor, machine.get("threads"))
    del model
    give_back_freed()
    return Opened(executor, budget, draft)


def grammars_of(spec: ModelSpec, vocab_size: int) -> "GrammarCompiler":
    """What holds the model's answers to grammars."""
    from runtime.text.grammar.compiler import GrammarCompiler

    return GrammarCompiler(partial(_tokenizer_of, spec.path), vocab_size)


def _tokenizer_of(path: Path) -> "Tokenizer":
    """The model is opened once more; only grammars need its text side here."""
    from compile.open_model import open_model
    from runtime.text.tokenizer import load_tokenizer

    return load_tokenizer(open_model(path))
