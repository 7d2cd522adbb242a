"""The small model that guesses for a large one."""

from pathlib import Path

from compile.model import Model
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
    return load_executor(
        model,
        num_pages=draft_pages(model, options, executor.num_pages, executor.page_size),
        page_size=executor.page_size,
        threads=threads,
        max_step_tokens=options.max_step_tokens,
    )


def draft_pages(model: Model, options: EngineOptions, num_pages: int, page_size: int) -> int:
    """Pages of the draft model's pool beside a pool of `num_pages`."""
    tokens = max(options.max_running * SEQUENCE_TOKENS, model.program.sizes.max_positions)
    return min(num_pages, tokens // page_size + 2)
