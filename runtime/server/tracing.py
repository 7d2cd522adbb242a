"""OpenTelemetry spans of requests, with the names of the gen_ai conventions; never any text.

Needs the extra `telemetry`. Where spans go is OpenTelemetry's own configuration, such as
OTEL_EXPORTER_OTLP_ENDPOINT.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

from quant.format.errors import MissingExtraError
from runtime.server.record import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


def open_tracer() -> "Tracer":
    """A tracer whose spans are sent in batches. MissingExtraError without the packages."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtraError("--trace", "opentelemetry", "telemetry") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "coldpress"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("coldpress")


@contextmanager
def traced(tracer: "Tracer", scope: Scope, record: RequestRecord) -> Iterator[None]:
    """A span for the request, the child of the client's where it sent a traceparent."""
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind, Status, StatusCode

    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    name = f"{scope['method'][:16]} {scope['path'][:200]}"
    with tracer.start_as_current_span(name, context=extract(headers), kind=SpanKind.SERVER) as span:
        yield
        if record.status:
            span.set_attribute("http.response.status_code", record.status)
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.set_attributes(_attributes(record))


def _attributes(record: RequestRecord) -> Mapping[str, Any]:
    """Counts and times in seconds; usage under its old names and its new ones."""
    found: dict[str, Any] = {"gen_ai.request.id": record.request_id}
    found["gen_ai.latency.e2e"] = time.monotonic() - record.started
    if not record.generations:
        return found
    first = record.generations[0]
    found |= {
        "gen_ai.request.n": record.choices,
        "gen_ai.request.max_tokens": first.max_tokens,
        "gen_ai.response.model": first.model_name,
        "gen_ai.usage.num_sequences": len(record.generations),
        "gen_ai.latency.time_in_queue": first.queue_seconds,
    }
    for names, count in (
        (("prompt_tokens", "input_tokens"), record.prompt_tokens),
        (("completion_tokens", "output_tokens"), record.answer_tokens),
    ):
        found |= {f"gen_ai.usage.{name}": count for name in names}
    if record.params is not None:
        sampling = record.params.sampling
        found |= {
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
        }
    if first.first_token is not None:
        found["gen_ai.latency.time_to_first_token"] = first.first_token - first.started
    return found
