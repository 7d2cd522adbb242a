"""The small model that guesses for a large one."""

from pathlib import Path

from quant.format.errors import InputError
from runtime.engine.batch import Executor
from runtime.engine.options import EngineOptions
from runtime.loading import LoadedExecutor, load_executor

SEQUENCE_TOKENS = 1024
"""Room for each running request, on average."""


def load_draft(
    options: EngineOptions, executor: Executor, threads: int | None = None
) -> LoadedExecutor | None:
    """The executor of `options.draft_model`; None where there is no such model. Its pages hold
    `SEQUENCE_TOKENS` tokens for each of the requests that run, but one whole context at least, and
    no more than those of `executor`: a text that finds no room among them gets no guesses.

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
    tokens = max(options.max_running * SEQUENCE_TOKENS, model.program.sizes.max_positions)
    return load_executor(
        model,
        num_pages=min(executor.num_pages, tokens // executor.page_size + 2),
        page_size=executor.page_size,
        threads=threads,
        max_step_tokens=options.max_step_tokens,
    )
