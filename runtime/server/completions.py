"""POST /v1/completions."""

from starlette.requests import Request
from starlette.responses import Response

from runtime.engine.request import RequestError
from runtime.server.answers import collected, json_answer, streamed
from runtime.server.bodies import read_fields, validated
from runtime.server.completion_answer import CompletionAnswer
from runtime.server.constraints import constraint_of
from runtime.server.encoding import encoded
from runtime.server.routing import App
from runtime.server.schemas import CompletionBody, prompts_of
from runtime.server.state import (
    ServerState,
    generation_params,
    kept_tokens,
    state_of,
    submit_all,
)
from runtime.service import GenerationService

_DEFAULT_MAX_TOKENS = 16


def add_routes(app: App) -> None:
    app.add_api_route("/v1/completions", create_completion, methods=["POST"])


async def create_completion(request: Request) -> Response:
    """Continue one or several prompts, whole or as a stream."""
    state = state_of(request)
    body = validated(CompletionBody, await read_fields(request, state.limits))
    service = await state.lease(request, body.model)
    prompts = await encoded(request, _encoded, state, service, body)
    params = generation_params(
        body,
        service.sampling_defaults,
        max_tokens=body.max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=_asked_of_prompt(body),
        constraint=await constraint_of(body),
    )
    tokens = [tokens for _, tokens in prompts]
    generations = submit_all(service, tokens, params, _DEFAULT_MAX_TOKENS)
    of_choices = [prompt for prompt in prompts for _ in params]
    answer = CompletionAnswer(service, body, of_choices, generations)
    if body.stream:
        return streamed(generations, state, answer.chunks, answer.usage_chunk)
    return json_answer(answer.whole(await collected(request, generations, state.metrics)))


def _asked_of_prompt(body: CompletionBody) -> int | None:
    """How many alternatives are wanted in the place of each prompt token, None for nothing."""
    if body.max_tokens == 0 and not body.echo and body.prompt_logprobs is None:
        raise RequestError("max_tokens 0 needs echo or prompt_logprobs", "max_tokens")
    asked = [] if body.prompt_logprobs is None else [body.prompt_logprobs]
    if body.echo and body.logprobs is not None:
        asked.append(body.logprobs)
    # The engine reads a prompt without an answer only for what it says of the prompt.
    return max(asked, default=0 if body.max_tokens == 0 else None)


def _encoded(
    state: ServerState, service: GenerationService, body: CompletionBody
) -> list[tuple[str, list[int]]]:
    """Text and token ids of each prompt, in order; RequestError if there are too many of them."""
    limit = state.limits.max_sequences
    prompts = prompts_of(body.prompt, limit)
    if len(prompts) * (body.n or 1) > limit:
        raise RequestError(
            f"{len(prompts)} prompts with n = {body.n} make {len(prompts) * (body.n or 1)} "
            f"answers; at most {limit} are allowed",
            "n",
        )
    keep = kept_tokens(service, body, body.max_tokens)
    return [_text_and_tokens(service, body, prompt, keep) for prompt in prompts]


def _text_and_tokens(
    service: GenerationService, body: CompletionBody, prompt: str | list[int], keep: int | None
) -> tuple[str, list[int]]:
    if isinstance(prompt, str):
        special = body.add_special_tokens is not False
        tokens = service.encode(prompt, add_special_tokens=special, keep_last=keep)
        if keep is None:
            return prompt, tokens
    else:
        tokens = prompt if keep is None else prompt[-keep:]
    text = service.tokenizer.decode(tokens, skip_special_tokens=False) if body.echo else ""
    return text, tokens
