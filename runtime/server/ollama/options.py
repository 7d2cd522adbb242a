"""Ollama's `options` as the fields of OpenAI's bodies, nothing dropped."""

from typing import Any

from runtime.engine.request import RequestError
from runtime.server.bodies import validated
from runtime.server.ollama.schemas import Options

_SAME = ("temperature", "top_k", "top_p", "min_p", "seed", "stop")
_PENALTIES = ("presence_penalty", "frequency_penalty")
_WITHOUT_EFFECT = frozenset(
    (
        # How Ollama's runner is loaded; here the operator decides.
        *("numa", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "use_mmap"),
        *("use_mlock", "num_thread", "vocab_only", "logits_all", "embedding_only"),
        # Which tokens Ollama keeps of a prompt that it cuts; prompts are not cut here.
        "num_keep",
        # Parameters of mirostat, which is refused.
        *("mirostat_tau", "mirostat_eta"),
        "draft_num_predict",
    )
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "mirostat": (0,),
    "tfs_z": (1, 1.0),
    "typical_p": (1, 1.0),
    "penalize_newline": (True,),
}


def parse_options(given: dict[str, Any] | None) -> Options:
    """The options that change an answer. RequestError for one that is not known or not honoured,
    ApiError for a value that is out of bounds."""
    asked = {name: value for name, value in (given or {}).items() if value is not None}
    for name, value in asked.items():
        if name in Options.model_fields or name in _WITHOUT_EFFECT:
            continue
        if name not in _NEUTRAL:
            raise _unsupported(name, "is not known")
        if value not in _NEUTRAL[name]:
            raise _unsupported(name, "is not supported")
    return validated(Options, asked)


def openai_fields(options: Options) -> dict[str, Any]:
    """The options under OpenAI's and vLLM's names, num_ctx apart."""
    fields = {name: getattr(options, name) for name in (*_SAME, *_PENALTIES)}
    if options.num_predict is not None and options.num_predict > 0:
        fields["max_tokens"] = options.num_predict
    fields["repetition_penalty"] = _repetition_penalty(options)
    return {name: value for name, value in fields.items() if value is not None}


def _repetition_penalty(options: Options) -> float | None:
    """Ours counts the whole prompt and answer, which is what a repeat_last_n of -1 asks for."""
    window, penalty = options.repeat_last_n, options.repeat_penalty
    if window == 0:
        return 1.0
    if window is not None and window > 0 and penalty not in (None, 1.0):
        raise _unsupported(
            "repeat_last_n", "must be -1 or 0: repeat_penalty counts the whole text here, it"
        )
    return penalty


def _unsupported(name: str, what: str) -> RequestError:
    param = f"options.{name[:50]}"
    return RequestError(f"{param} {what}; leave it out", param, "unsupported_field")
