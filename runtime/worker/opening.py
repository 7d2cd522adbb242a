"""What a worker opens of a model: the executor at once, the text side only for grammars."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.engine.constraint import Constraint, Grammars, Matcher
from runtime.worker.spec import ModelSpec

if TYPE_CHECKING:
    from runtime.loading import LoadedExecutor


@dataclass(frozen=True)
class Opened:
    """A model that is loaded. memory: the arithmetic of what it takes, one line. draft: what
    guesses for it."""

    executor: "LoadedExecutor"
    memory: str = ""
    draft: "LoadedExecutor | None" = None


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
    return Opened(executor, "" if budget is None else budget.sentence(), draft)


class LazyGrammars:
    """The `Grammars` of a model whose tokenizer is read when the first constraint comes: most
    servers never meet one, and none should start later for it."""

    def __init__(self, spec: ModelSpec, vocab_size: int) -> None:
        self._spec = spec
        self._vocab_size = vocab_size
        self._grammars: Grammars | None = None

    def matcher(self, constraint: Constraint) -> Matcher:
        """See `Grammars`. Two threads at once may read the tokenizer twice, no more."""
        if self._grammars is None:
            self._grammars = self._read()
        return self._grammars.matcher(constraint)

    def _read(self) -> Grammars:
        from compile.open_model import open_model
        from runtime.text.grammar.compiler import GrammarCompiler
        from runtime.text.tokenizer import load_tokenizer

        return GrammarCompiler(load_tokenizer(open_model(self._spec.path)), self._vocab_size)
