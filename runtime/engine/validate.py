"""Refusing what can never be honoured, before it costs anything."""

from math import isfinite

from runtime.engine.request import Request, RequestError, SamplingParams

_SMALLEST_FLOAT32 = 2.0**-126
"""Of full precision: penalties divide float32."""


def check_request(
    request: Request,
    *,
    vocab_size: int,
    max_positions: int,
    pool_tokens: int,
    gives_hidden: bool = False,
) -> None:
    """Raise RequestError for a request that this model and this pool can never serve."""
    _check_lengths(request, max_positions, pool_tokens)
    _check_token_ids(request, vocab_size)
    _check_pooling(request, gives_hidden)
    _check_times(request)
    check_sampling(request.sampling, vocab_size)


def _check_times(request: Request) -> None:
    for name in ("queue_seconds", "deadline_seconds"):
        seconds = getattr(request, name)
        if seconds is not None and not (seconds > 0 and isfinite(seconds)):
            raise RequestError(f"{name} must be above 0 and finite, not {seconds}", name)


def _check_lengths(request: Request, max_positions: int, pool_tokens: int) -> None:
    prompt, answer = len(request.prompt_tokens), request.max_tokens
    if prompt == 0:
        raise RequestError("the prompt is empty; give at least one token", "prompt", "empty_prompt")
    least = 1 if request.sampling.prompt_logprobs is None and request.pooling is None else 0
    if answer < least:
        raise RequestError(f"max_tokens must be at least {least}, not {answer}", "max_tokens")
    if not 0 <= request.min_tokens <= answer:
        raise RequestError(
            f"min_tokens must be between 0 and max_tokens {answer}, not {request.min_tokens}",
            "min_tokens",
        )
    if prompt + least > max_positions:
        raise RequestError(
            f"the prompt has {prompt} tokens, but the model's context is {max_positions} tokens, "
            f"which must leave room for an answer",
            "prompt",
            "context_length_exceeded",
        )
    for limit, what in ((max_positions, "model's context is"), (pool_tokens, "KV cache holds")):
        if prompt + answer > limit:
            raise RequestError(
                f"prompt {prompt} and max_tokens {answer} make {prompt + answer} tokens, but the "
                f"{what} {limit} tokens",
                "max_tokens",
                "context_length_exceeded",
            )


def _check_pooling(request: Request, gives_hidden: bool) -> None:
    if request.pooling is None:
        return
    if not gives_hidden:
        raise RequestError(
            "this model's backend gives no embeddings; serve it with the cpu or torch backend",
            "model",
        )
    if request.max_tokens > 0 or request.sampling.prompt_logprobs is not None:
        raise RequestError("an embedding comes without an answer", "pooling")


def _check_token_ids(request: Request, vocab_size: int) -> None:
    for token_id in (min(request.prompt_tokens), max(request.prompt_tokens)):
        if not 0 <= token_id < vocab_size:
            raise RequestError(
                f"prompt token {token_id} is outside the vocabulary of {vocab_size} tokens",
                "prompt",
                "invalid_token",
            )


def check_sampling(params: SamplingParams, vocab_size: int) -> None:
    """Raise RequestError naming the first field that is out of range."""
    rules = (
        ("temperature", params.temperature >= 0 and isfinite(params.temperature), "at least 0"),
        ("top_k", params.top_k >= 0, "at least 0 (0 keeps every token)"),
        ("top_p", 0 < params.top_p <= 1, "above 0 and at most 1"),
        ("min_p", 0 <= params.min_p <= 1, "between 0 and 1"),
        ("presence_penalty", isfinite(params.presence_penalty), "a finite number"),
        ("frequency_penalty", isfinite(params.frequency_penalty), "a finite number"),
        (
            "repetition_penalty",
            params.repetition_penalty >= _SMALLEST_FLOAT32 and isfinite(params.repetition_penalty),
            f"at least {_SMALLEST_FLOAT32:g}",
        ),
        *(
            (
                name,
                asked is None or 0 <= asked <= vocab_size,
                f"between 0 and the vocabulary's {vocab_size}",
            )
            for name, asked in (
                ("logprobs", params.logprobs),
                ("prompt_logprobs", params.prompt_logprobs),
            )
        ),
    )
    for name, holds, wanted in rules:
        if not holds:
            raise RequestError(f"{name} must be {wanted}, not {getattr(params, name)}", name)
    _check_words(params, vocab_size)
    for token_id, bias in params.logit_bias.items():
        if not 0 <= token_id < vocab_size:
            raise RequestError(
                f"logit_bias names token {token_id}, outside the vocabulary of {vocab_size} tokens",
                "logit_bias",
            )
        if not isfinite(bias):
            raise RequestError(f"logit_bias of token {token_id} is not finite", "logit_bias")


def _check_words(params: SamplingParams, vocab_size: int) -> None:
    allowed, words = params.allowed_token_ids, params.bad_words
    if allowed is not None and not allowed:
        raise RequestError("allowed_token_ids allows no token", "allowed_token_ids")
    for name, ids in (("allowed_token_ids", [allowed or ()]), ("bad_words", words)):
        for found in ids:
            if not all(0 <= token_id < vocab_size for token_id in found):
                raise RequestError(
                    f"{name} names a token outside the vocabulary of {vocab_size} tokens", name
                )
    if not all(words):
        raise RequestError("bad_words holds a word without a token", "bad_words")


def queue_full(num_waiting: int, max_waiting: int, wait_seconds: float = 0.0) -> RequestError:
    """wait_seconds: how long the last of those who wait is likely to; see Engine.expected_wait."""
    return RequestError(
        f"{num_waiting} requests are waiting and the queue holds {max_waiting}; try again later",
        code="queue_full",
        retry_after_seconds=wait_seconds,
    )


def duplicate_request(request_id: str) -> RequestError:
    return RequestError(
        f"a request named {request_id!r} is still running; choose another id",
        "request_id",
        "duplicate_request_id",
    )
