"""What a worker opens of a model: the executor, and the text side only for grammars."""

import contextlib
import threading
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from runtime.engine.constraint import Constraint, ConstraintError, Matcher
from runtime.machine import give_back_freed
from runtime.worker.spec import ModelSpec

if TYPE_CHECKING:
    from runtime.loading import LoadedExecutor
    from runtime.text.grammar.compiler import GrammarCompiler
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


class LazyGrammars:
    """The `Grammars` of a model, prepared when the first constraint comes: the vocabulary takes
    tens of megabytes, which a server that nobody asks for grammars does not need."""

    def __init__(self, spec: ModelSpec, vocab_size: int) -> None:
        self._spec = spec
        self._vocab_size = vocab_size
        self._grammars: GrammarCompiler | None = None
        self._failure = ""
        self._lock = threading.Lock()

    def matcher(self, constraint: Constraint) -> Matcher:
        """See `Grammars`. Safe from any thread."""
        with self._lock:
            if self._grammars is None and not self._failure:
                self._read()
        if self._grammars is None:
            raise ConstraintError(f"the model's tokenizer cannot be read: {self._failure}")
        return self._grammars.matcher(constraint)

    def _read(self) -> None:
        try:
            self._grammars = _prepared(self._spec, self._vocab_size)
        except Exception as error:
            self._failure = str(error) or type(error).__name__
        give_back_freed()


def _prepared(spec: ModelSpec, vocab_size: int) -> "GrammarCompiler":
    from compile.open_model import open_model
    from runtime.text.grammar.compiler import GrammarCompiler
    from runtime.text.tokenizer import load_tokenizer

    grammars = GrammarCompiler(load_tokenizer(open_model(spec.path)), vocab_size)
    grammars.prepare()
    return grammars
