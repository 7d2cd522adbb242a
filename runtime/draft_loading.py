"""The small model that guesses for a large one."""

from pathlib import Path

from quant.format.errors import InputError
from runtime.engine.batch import Executor
from runtime.engine.options import EngineOptions
from runtime.loading import LoadedExecutor, load_executor


def load_draft(
    options: EngineOptions, executor: Executor, threads: int | None = None
) -> LoadedExecutor | None:
    """The executor of `options.draft_model`, with as many pages as `executor` has; None where there
    is no such model. Its pages take memory only once they are used.

    Raises InputError for one with another vocabulary, and whatever opening it raises.
    """
    if options.draft_model is None:
        return None
    from compile.open_model import open_model

    model = open_model(Path(options.draft_model))
    found = model.program.sizes.vocab_size
    if found != executor.vocab_size:
        raise InputError(
            f"{options.draft_model}: has a vocabulary of {found} tokens, but the model that it is "
            f"to guess for has {executor.vocab_size}; choose a draft model of the same family"
        )
    return load_executor(
        model,
        num_pages=executor.num_pages,
        page_size=executor.page_size,
        threads=threads,
        max_step_tokens=options.max_step_tokens,
    )
