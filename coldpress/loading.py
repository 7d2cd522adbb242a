"""Opens an artifact for the commands: the model, its tokenizer, an executor that runs it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from quant.format.errors import InputError

if TYPE_CHECKING:
    from compile.model import Model
    from runtime.engine.options import EngineOptions
    from runtime.loading import LoadedExecutor
    from runtime.service import EngineHandle, GenerationService
    from runtime.text.tokenizer import Tokenizer
    from runtime.worker.process import WorkerProcess
    from runtime.worker.spec import ModelSpec

PAGE_SIZE = 32
AUTO = "auto"
Activations = Literal["int8", "float32"]
"""What integer weights are multiplied by: inputs rounded to int8, or inputs as they are."""


@dataclass(frozen=True)
class Machine:
    """What runs a model. backend: "cpu", "cuda", "torch", "onnx", "tensorrt", or "auto" for the one
    that is made for it. threads: None for all cores. exact, kv_cache_type and tensor_parallel: see
    `load_executor`."""

    backend: str = AUTO
    threads: int | None = None
    exact: bool = False
    kv_cache_type: str = AUTO
    tensor_parallel: int = 1

    @classmethod
    def of(
        cls,
        backend: str,
        threads: int | None,
        activations: str,
        kv_cache_type: str = AUTO,
        tensor_parallel: int = 1,
    ) -> "Machine":
        """Raises InputError for activations that do not exist."""
        if activations not in get_args(Activations):
            known = " or ".join(get_args(Activations))
            raise InputError(f"activations {activations!r} do not exist; choose {known}")
        return cls(backend, threads, activations == "float32", kv_cache_type, tensor_parallel)

    def load(self, model: "Model", **sizes: Any) -> "LoadedExecutor":
        """Load the weights of `model`; `sizes` are those of `load_executor`."""
        from runtime.loading import load_executor

        return load_executor(model, **self.plain, **sizes)

    @property
    def plain(self) -> dict[str, Any]:
        """As keyword arguments of `load_executor`."""
        return asdict(self)


DEFAULT_MACHINE = Machine()
EXACT_MACHINE = Machine(exact=True)
"""What quality is measured with: nothing is rounded but what the artifact rounds."""
OnNote = Callable[[str], None]


def open_artifact(path: Path, on_note: OnNote | None = None) -> "tuple[Model, Tokenizer]":
    """The model and its tokenizer; reads headers only.

    on_note: is told, once for each, what of the artifact is not used as it is stored.
    """
    from compile.open_model import open_model
    from runtime.text.tokenizer import load_tokenizer

    model = open_model(path)
    _tell_notes(model, on_note)
    return model, load_tokenizer(model)


def _tell_notes(model: "Model", on_note: OnNote | None) -> None:
    if on_note is not None:
        for note in dict.fromkeys(model.notes):
            on_note(f"note: {default_name(model.path)}: {note}")


def open_executor(
    model: "Model", machine: Machine, *, tokens: int, sequences: int = 1
) -> "LoadedExecutor":
    """An executor whose pool holds `sequences` sequences of `tokens` positions each."""
    pages = -(-tokens // PAGE_SIZE) * sequences + 1
    return machine.load(model, num_pages=pages, page_size=PAGE_SIZE)


def open_service(
    path: Path,
    machine: Machine = DEFAULT_MACHINE,
    *,
    context: int | None = None,
    kv_cache_bytes: int | None = None,
    options: "EngineOptions | None" = None,
    name: str | None = None,
    on_note: OnNote | None = None,
) -> "tuple[GenerationService, Callable[[], None]]":
    """A service that answers from `path`, and what closes it.

    context: longest prompt and answer together; the model's own by default. kv_cache_bytes: memory
    of the page pool; sixteen contexts, or a quarter of the free memory, by default. options: the
    engine's limits and modes. on_note: see `open_artifact`.
    """
    from runtime.draft_loading import load_draft
    from runtime.engine.engine import Engine
    from runtime.engine.options import EngineOptions
    from runtime.engine.thread import EngineThread
    from runtime.service import usable_positions
    from runtime.text.grammar.compiler import GrammarCompiler
    from runtime.text.template import render_pool

    render_pool().start()
    model, tokenizer = open_artifact(path, on_note)
    check_context(model, context, name or default_name(path))
    options = options or EngineOptions(prompt_lookup=True)
    executor = machine.load(
        model, kv_cache_bytes=kv_cache_bytes, max_step_tokens=options.max_step_tokens
    )
    grammars = GrammarCompiler(lambda: tokenizer, executor.vocab_size)
    draft = load_draft(options, executor, machine.threads)
    engine = EngineThread(Engine(executor, options, grammars=grammars, draft_executor=draft))

    def close() -> None:
        if engine.shutdown(drain_seconds=0.0):
            executor.close()
            if draft is not None:
                draft.close()

    usable = min(context or usable_positions(executor), usable_positions(executor))
    return _service_of(model, tokenizer, engine, name or default_name(path), usable), close


class StartedModel:
    """A model that a worker process has begun to load, and this process the text side of.

    `service` waits for both. What it raises ends the worker. process: one that was started ahead.
    """

    def __init__(self, spec: "ModelSpec", process: "WorkerProcess | None" = None) -> None:
        from runtime.text.template import render_pool
        from runtime.worker.engine_process import start_worker

        self.spec = spec
        self.engine = start_worker(spec, process)
        render_pool().start()

    def service(
        self, on_note: OnNote | None = None, model: "Model | None" = None
    ) -> "GenerationService":
        """What answers; raises what opening the model raised, here or there. on_note: see
        `open_artifact`. model: where it is open already."""
        from compile.open_model import open_model
        from runtime.machine import give_back_freed
        from runtime.text.tokenizer import load_tokenizer

        try:
            model = model or open_model(self.spec.path)
            check_context(model, self.spec.context, self.spec.name)
            _tell_notes(model, on_note)
            tokenizer = load_tokenizer(model)
            facts = self.engine.wait_ready()
            if on_note is not None and facts.memory:
                on_note(f"memory of {self.spec.name}: {facts.memory}")
            usable = min(self.spec.context or facts.usable_positions, facts.usable_positions)
            service = _service_of(model, tokenizer, self.engine, self.spec.name, usable)
            del model
            give_back_freed()
            return service
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the worker, and with it what it holds."""
        self.engine.shutdown(drain_seconds=0.0)


def check_context(model: "Model", context: int | None, name: str) -> None:
    """InputError for one that is longer than what the model was made for."""
    longest = model.program.sizes.max_positions
    if context is not None and context > longest:
        raise InputError(
            f"a context of {context} tokens is longer than the {longest} of '{name}'; "
            "lower --context"
        )


def _service_of(
    model: "Model", tokenizer: "Tokenizer", engine: "EngineHandle", name: str, usable: int
) -> "GenerationService":
    from runtime.service import GenerationService
    from runtime.text.generation_config import load_sampling_defaults
    from runtime.text.template import load_template

    template, defaults = load_template(model), load_sampling_defaults(model)
    return GenerationService(engine, tokenizer, template, name, usable, defaults)


def default_name(path: Path) -> str:
    """What a model is called in requests unless told otherwise."""
    resolved = path.resolve()
    return resolved.stem if resolved.is_file() else resolved.name


def payload_bytes(path: Path) -> int:
    """Bytes of the files that hold weights: GGUF, an engine, an ONNX graph with its data, or every
    shard."""
    if path.suffix == ".onnx":
        path = path.parent
    if path.is_file():
        return path.stat().st_size
    kinds = ("*.gguf", "*.safetensors", "*.engine", "*.onnx*")
    found = next(filter(None, (list(path.glob(kind)) for kind in kinds)), [])
    return sum(file.stat().st_size for file in found)
