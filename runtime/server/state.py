"""What every route needs, and the steps that chat and plain completions share."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import Request

from runtime.engine.constraint import Constraint
from runtime.engine.request import RequestError, SamplingParams
from runtime.generation import Generation, GenerationParams
from runtime.server.bodies import fields_of
from runtime.server.encoding import LargeRequests
from runtime.server.leases import lease, sticky_key
from runtime.server.limits import Limits
from runtime.server.metrics import Metrics
from runtime.server.record import note_generations, priority_of, salted
from runtime.server.registry import Registry
from runtime.server.registry_errors import not_loaded
from runtime.server.schemas import SamplingBody, bias_of
from runtime.service import GenerationService


@dataclass
class ServerState:
    """One per app; `created` is the start time in Unix seconds."""

    registry: Registry
    limits: Limits
    metrics: Metrics
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    has_key: bool = False
    """Whether an API key guards every route but health."""
    large_requests: LargeRequests = field(default_factory=LargeRequests)

    @property
    def services(self) -> Mapping[str, GenerationService]:
        """The services that answer at the moment somebody looks, by name."""
        return self.registry.ready_services()

    async def lease(self, request: Request, model: str | None) -> GenerationService:
        """The service that answers `request`, whose body has been read; without a name, the first.

        The model is loaded where need be and stays so until the answer is out. `model_name` of what
        is returned is the model that answers, whatever name was asked for. Raises ApiError: 404 for
        an unknown name, 503 where the model cannot be loaded, 429 where too many wait for that.
        """
        served = self.registry.resolve(model, sticky_key(fields_of(request)))
        return await lease(self.registry, request, served)

    def service(self, model: str | None) -> GenerationService:
        """A service to look at, not to ask: nothing is loaded, and nothing keeps it loaded.
        ApiError 404 for an unknown name, 503 for a model that is not loaded."""
        served = self.registry.resolve(model)
        if served.service is None:
            raise not_loaded(served)
        return served.service


def state_of(request: Request) -> ServerState:
    state: ServerState = request.app.state.server
    return state


def generation_params(
    body: SamplingBody,
    defaults: Mapping[str, Any],
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    constraint: Constraint | None = None,
) -> list[GenerationParams]:
    """One set of parameters per choice: seeds count up, so that choices differ yet repeat."""
    sampling = replace(_sampling(body, defaults, logprobs), prompt_logprobs=prompt_logprobs)
    stop = body.stop if isinstance(body.stop, list) else [body.stop] if body.stop else []
    params = GenerationParams(
        max_tokens=max_tokens,
        sampling=sampling,
        stop=tuple(stop),
        stop_token_ids=frozenset(body.stop_token_ids or ()),
        bad_words=tuple(body.bad_words or ()),
        include_stop=bool(body.include_stop_str_in_output),
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        skip_special_tokens=body.skip_special_tokens is not False,
        priority=priority_of(body.priority),
        cache_salt=salted(body.cache_salt),
        constraint=constraint,
        queue_seconds=body.queue_timeout_seconds,
        deadline_seconds=body.timeout_seconds,
    )
    seed = sampling.seed
    if seed is None:
        return [params] * (body.n or 1)
    return [
        replace(params, sampling=replace(sampling, seed=seed + choice))
        for choice in range(body.n or 1)
    ]


def _sampling(
    body: SamplingBody, defaults: Mapping[str, Any], logprobs: int | None
) -> SamplingParams:
    """The request's own values, else the model's recommended ones, else OpenAI's."""
    names = (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "seed",
    )
    asked = {name: value for name in names if (value := getattr(body, name)) is not None}
    chosen = {**defaults, **asked}
    # vLLM's clients write -1 for "all tokens".
    chosen["top_k"] = max(0, chosen.get("top_k", 0))
    allowed = body.allowed_token_ids
    return SamplingParams(
        **chosen,
        logit_bias=bias_of(body.logit_bias),
        logprobs=logprobs,
        allowed_token_ids=None if allowed is None else tuple(allowed),
    )


def kept_tokens(
    service: GenerationService, body: SamplingBody, max_tokens: int | None
) -> int | None:
    """How many tokens of a prompt's end are used, where the request says that it may be cut."""
    asked = body.truncate_prompt_tokens
    if asked == 0:
        name = "truncate_prompt_tokens"
        raise RequestError(f"{name} must be at least 1, or -1", name)
    if asked is None or asked > 0:
        return asked
    return max(1, service.max_positions - max(1, max_tokens or 0))


def submit_all(
    service: GenerationService,
    prompts: Sequence[Sequence[int]],
    params: Sequence[GenerationParams],
    default_max_tokens: int | None = None,
) -> list[Generation]:
    """A generation for each prompt and choice, all or none. Where nothing is asked for,
    max_tokens is what the context leaves, and at most `default_max_tokens`."""
    started: list[Generation] = []
    try:
        for prompt in prompts:
            default = _at_most(default_max_tokens, service.max_positions - len(prompt))
            for choice in params:
                max_tokens = default if choice.max_tokens is None else choice.max_tokens
                started.append(service.submit(prompt, replace(choice, max_tokens=max_tokens)))
    except BaseException:
        cancel_all(started)
        raise
    note_generations(started, params)
    return started


def _at_most(default: int | None, room: int) -> int | None:
    return default if default is None or room < 1 else min(default, room)


def cancel_all(generations: Sequence[Generation]) -> None:
    for generation in generations:
        generation.cancel()


def usage_of(
    generations: Sequence[Generation], num_choices: int, num_reasoning_tokens: int = 0
) -> dict[str, Any]:
    """OpenAI's usage object; a prompt is counted once, whatever n is."""
    cached = sum(generation.num_cached_tokens for generation in generations[::num_choices])
    prompt = sum(generation.num_prompt_tokens for generation in generations[::num_choices])
    answer = sum(generation.num_answer_tokens for generation in generations)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": num_reasoning_tokens},
    }
