"""A model in this process: text in, text out, without a server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from coldpress.loading import Activations, Machine, OnNote, open_service
from coldpress.store.resolve import resolve
from runtime.engine.options import EngineOptions
from runtime.engine.request import FinishReason, SamplingParams
from runtime.generation import Generation, GenerationParams

MAX_WAITING = 100_000
"""Nobody waits outside this process, so a list of prompts is not refused for its length."""

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Completion:
    """One answer. finish_reason: "stop" (it ended itself) or "length" (max_tokens came first)."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


class LLM:
    """Answers prompts with an artifact: a built directory, a checkpoint, a bare GGUF file, or a
    model of the local store by its name.

        with coldpress.LLM("model.gguf") as model:
            print(model.chat([{"role": "user", "content": "Hello!"}]).text)

    Greedy unless a temperature is given. Prompts of one call share steps; each answer is what it
    would be alone. Raises InputError for an artifact that cannot be loaded.
    """

    def __init__(
        self,
        artifact: Path | str,
        *,
        backend: str = "auto",
        threads: int | None = None,
        activations: Activations = "int8",
        kv_cache_type: str = "auto",
        context: int | None = None,
        max_running: int = 16,
        on_note: OnNote | None = None,
    ) -> None:
        """`activations`: what integer weights are multiplied by: inputs rounded to int8, or with
        "float32", several times slower, inputs as they are. `kv_cache_type`: what keys and values
        are kept in, "auto" being bfloat16, or float32 with inputs as they are. `context`: longest
        prompt and answer together, in tokens; the model's own by default. `on_note` is told what of
        the artifact is not used as it is stored."""
        self._service, self._close = open_service(
            resolve(artifact)[1] if isinstance(artifact, str) else artifact,
            Machine.of(backend, threads, activations, kv_cache_type),
            context=context,
            options=EngineOptions(
                max_running=max_running, max_waiting=MAX_WAITING, prompt_lookup=True
            ),
            on_note=on_note,
        )

    @property
    def has_chat_template(self) -> bool:
        return self._service.template is not None

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_tokens: int = 128,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> list[Completion]:
        """Continue plain text, one completion per prompt, in the order of the prompts.

        `sampling` are fields of `SamplingParams`: temperature, top_p, seed and so on. Raises
        RequestError, before anything is computed, for a prompt that does not fit the context.
        """
        listed = [prompts] if isinstance(prompts, str) else list(prompts)
        params = _params(max_tokens, stop, sampling)
        encoded = [self._service.encode(prompt) for prompt in listed]
        return [_finish(one) for one in self._submit_all(encoded, params)]

    def chat(
        self,
        messages: Messages,
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> Completion:
        """Answer a conversation of `{"role", "content"}` messages, by the model's own template."""
        return _finish(self.stream_chat(messages, max_tokens=max_tokens, stop=stop, **sampling))

    def stream_chat(
        self,
        messages: Messages,
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> Generation:
        """As `chat`, but returns at once; iterate over the result for the text as it comes."""
        params = _params(max_tokens, stop, sampling)
        return self._service.submit(self._service.encode_chat(messages), params)

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 128,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> Generation:
        """As `generate` for one prompt, text or token ids, but returns at once."""
        params = _params(max_tokens, stop, sampling)
        tokens = self._service.encode(prompt) if isinstance(prompt, str) else prompt
        return self._service.submit(tokens, params)

    def close(self) -> None:
        """Stop the engine and free the weights."""
        self._close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _submit_all(
        self, prompts: Sequence[Sequence[int]], params: GenerationParams
    ) -> list[Generation]:
        started: list[Generation] = []
        try:
            for tokens in prompts:
                started.append(self._service.submit(tokens, params))
        except BaseException:
            for generation in started:
                generation.cancel()
            raise
        return started


def _params(max_tokens: int, stop: Sequence[str], sampling: dict[str, Any]) -> GenerationParams:
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    chosen = SamplingParams(**{"temperature": 0.0, **sampling})
    return GenerationParams(max_tokens=max_tokens, sampling=chosen, stop=stops)


def _finish(generation: Generation) -> Completion:
    text = []
    for delta in generation:
        text.append(delta.text)
        if delta.error is not None:
            raise RuntimeError(f"the engine failed: {delta.error}")
    reason = generation.finish_reason
    assert reason is not None, "an answer ended without a reason"
    return Completion(
        "".join(text), reason, generation.num_prompt_tokens, generation.num_answer_tokens
    )
