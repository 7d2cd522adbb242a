"""POST .../generate and .../generate_stream: text in, text out."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from runtime.engine.request import RequestError
from runtime.generation import Generation, TextDelta
from runtime.server.answers import collected, json_answer
from runtime.server.bodies import read_fields, validated
from runtime.server.encoding import encoded
from runtime.server.flat_streams import event_stream
from runtime.server.kserve.metadata import VERSION, check_version
from runtime.server.logprobs import chat_logprobs
from runtime.server.schemas import CompletionBody
from runtime.server.state import generation_params, state_of, submit_all
from runtime.service import GenerationService

_DEFAULT_MAX_TOKENS = 20
_PARAMETERS = frozenset(
    (
        *("max_tokens", "min_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
        *("ignore_eos", "stop_token_ids", "add_special_tokens", "skip_special_tokens"),
    )
)


class GenerateBody(BaseModel):
    """The protocol's request; `parameters` has OpenAI's names, and `details`. stream: what the path
    says already, for clients that say it twice."""

    model_config = ConfigDict(strict=True, extra="ignore")

    id: str | None = Field(None, max_length=256)
    text_input: str
    parameters: dict[str, Any] | None = None
    stream: bool | None = None


async def generate(request: Request, model: str, version: str = VERSION) -> Response:
    """The whole answer in one object."""
    answer = await _start(request, model, version, streams=False)
    (deltas,) = await collected(request, [answer.generation], state_of(request).metrics)
    return json_answer(answer.payload(deltas))


async def generate_stream(request: Request, model: str, version: str = VERSION) -> Response:
    """One event per token; the last one has the details, if they were asked for."""
    answer = await _start(request, model, version, streams=True)
    return event_stream(answer.generation, state_of(request), lambda delta: answer.payload([delta]))


async def _start(request: Request, model: str, version: str, *, streams: bool) -> "_Answer":
    check_version(model, version)
    state = state_of(request)
    fields = await read_fields(request, state.limits)
    _refuse_misplaced(fields)
    body = validated(GenerateBody, fields)
    if body.stream not in (None, streams):
        path = "generate" if streams else "generate_stream"
        raise RequestError(f"'stream' is {str(body.stream).lower()}; ask .../{path}", "stream")
    given = {k: v for k, v in (body.parameters or {}).items() if v is not None}
    details = given.pop("details", False)
    if type(details) is not bool:
        raise RequestError("parameters.details must be true or false", "parameters.details")
    _refuse_unknown(given)
    asked = validated(CompletionBody, {**given, "prompt": body.text_input})
    service = await state.lease(request, model)
    prompt = await encoded(
        request,
        service.encode,
        body.text_input,
        add_special_tokens=asked.add_special_tokens is not False,
    )
    params = generation_params(
        asked,
        service.sampling_defaults,
        max_tokens=asked.max_tokens,
        logprobs=0 if details else None,
    )
    (generation,) = submit_all(service, [prompt], params, _DEFAULT_MAX_TOKENS)
    return _Answer(service, generation, body.id, details)


def _refuse_misplaced(fields: dict[str, Any]) -> None:
    """Other servers of the protocol take parameters beside the text; here they would be lost."""
    for name in fields:
        if name in _PARAMETERS or name == "details":
            raise RequestError(f"'{name}' belongs into 'parameters'", name, "unsupported_field")


def _refuse_unknown(given: dict[str, Any]) -> None:
    for name in given:
        if name not in _PARAMETERS:
            known = ", ".join(sorted((*_PARAMETERS, "details")))
            raise RequestError(
                f"parameters.{name[:50]} is not known; there are: {known}",
                f"parameters.{name[:50]}",
                "unsupported_field",
            )


class _Answer:
    def __init__(
        self,
        service: GenerationService,
        generation: Generation,
        request_id: str | None,
        details: bool,
    ) -> None:
        self.generation = generation
        self._service = service
        self._details = details
        self._head: dict[str, Any] = {} if request_id is None else {"id": request_id}
        self._head |= {"model_name": service.model_name, "model_version": VERSION}

    def payload(self, deltas: Sequence[TextDelta]) -> dict[str, Any]:
        answer = {**self._head, "text_output": "".join(delta.text for delta in deltas)}
        if self._details:
            answer["details"] = {
                "finish_reason": self._finish_reason(deltas[-1]),
                "logprobs": self._logprobs(deltas),
            }
        return answer

    def _finish_reason(self, last: TextDelta) -> str | None:
        if last.finish_reason != "stop":
            return last.finish_reason
        is_end = last.ending_id in self._service.tokenizer.ending_ids
        return "eos_token" if is_end else "stop_sequence"

    def _logprobs(self, deltas: Sequence[TextDelta]) -> list[dict[str, Any]]:
        tokenizer = self._service.tokenizer
        entries = chat_logprobs(tokenizer, deltas)["content"]
        ids = [delta.token_id for delta in deltas if delta.token_id is not None]
        return [
            {
                "id": id_,
                "text": entry["token"],
                "logprob": entry["logprob"],
                "special": id_ in tokenizer.special_ids,
            }
            for id_, entry in zip(ids, entries, strict=True)
        ]
