"""Spans by OpenTelemetry, one trace a job; nothing at all unless the environment asks for them (`_ASKS`).

No message and no column carries a trace: its id is the job's own (a UUID has as many bits), and that of its root span
is the id's lower half. So whoever works on a job knows both, and the root is written when the job has ended (ADR 57).
Only what belongs to a job is recorded, unless OTEL_TRACES_SAMPLER says otherwise. Of each span only the attributes in
`_TOLD` leave: links, bodies and the texts of errors hold secrets. No trace is told to the provider or to receivers.
"""

from __future__ import annotations

import os
import time
import uuid
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from worker import log

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanContext

_ASKS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")
_GROUP, _PATCHED = "opentelemetry_instrumentor", ("botocore", "celery", "httpx", "psycopg", "redis")
_LOWER = (1 << 64) - 1  # bits of an id that are a span's
# What may leave of a span's attributes. A statement has no values: those are its parameters.
_TOLD = frozenset(
    {
        *("noria.job", "noria.lane", "noria.state", "noria.status"),
        *("db.system", "db.name", "db.statement", "db.redis.database_index", "db.redis.args_length"),
        *("http.method", "http.status_code", "server.address"),
        *("rpc.system", "rpc.service", "rpc.method", "aws.request_id", "retry_attempts"),
        *("celery.action", "celery.task_name", "messaging.destination"),
    }
)

_log = log.get(__name__)
_tracing: _Tracing | None = None  # None: off. One for the process, as the libraries that it patches are


def start(service: str) -> None:
    """Begins to record, if the environment asks for it; `service` unless OTEL_SERVICE_NAME says another name."""
    global _tracing
    if _tracing is None and _is_asked_for():
        try:
            _tracing = _Tracing(service)
        except ImportError as missing:
            _log.warning("spans were asked for, and the extra otel is not installed", missing=missing.name)


def stop() -> None:
    """Sends what is recorded and not sent yet, and records no more."""
    global _tracing
    if _tracing is not None:
        _tracing.end()
        _tracing = None


def step(job_id: uuid.UUID, parent_id: uuid.UUID | None, name: str, **about: Any) -> AbstractContextManager[Any]:
    """A span of the trace of that job, or of its parent: a part is part of what the user submitted."""
    return _tracing.step(job_id, parent_id or job_id, name, about) if _tracing else nullcontext()


def submitted(job_id: uuid.UUID, began: int) -> None:
    """The span of a submission, until now; it is written afterwards, since the job's id is the database's."""
    if _tracing:
        _tracing.write(job_id, "submit", began, time.time_ns())


def ended(job_id: uuid.UUID, name: str, began: datetime, end: datetime, **about: Any) -> None:
    """Writes the root of a job's trace: the whole of its life."""
    if _tracing:
        _tracing.write(job_id, name, _ns(began), _ns(end), is_root=True, **about)


class _Tracing:
    """What records, while it does. OpenTelemetry is imported here alone, and not at all where nobody asks for it."""

    def __init__(self, service: str) -> None:
        from opentelemetry import propagate
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.propagators.composite import CompositePropagator
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

        nowhere = CompositePropagator([])
        propagate.set_global_textmap(nowhere)
        self._resource = Resource.create({"service.name": service}).merge(OTELResourceDetector().detect())
        # a span without a parent is of no job: of a tick, of a request, of the messages of many jobs
        sampler = None if os.environ.get("OTEL_TRACES_SAMPLER") else ParentBased(ALWAYS_OFF)
        self._provider = TracerProvider(sampler, self._resource)
        self._sender = BatchSpanProcessor(_cleaned(OTLPSpanExporter()))
        self._provider.add_span_processor(self._sender)
        self._tracer = self._provider.get_tracer("noria")
        self._patched = [found.load()() for found in entry_points(group=_GROUP) if found.name in _PATCHED]
        for library in self._patched:
            library.instrument(tracer_provider=self._provider, propagator=nowhere, request_hook=_host)

    def end(self) -> None:
        for library in self._patched:
            library.uninstrument()
        self._provider.shutdown()

    def step(self, job_id: uuid.UUID, of: uuid.UUID, name: str, about: dict[str, Any]) -> AbstractContextManager[Any]:
        from opentelemetry import trace

        root = trace.set_span_in_context(trace.NonRecordingSpan(_context(of)))
        return self._tracer.start_as_current_span(name, root, attributes=_said(job_id, about))

    def write(self, job_id: uuid.UUID, name: str, began: int, end: int, *, is_root: bool = False, **about: Any) -> None:
        """A span whose times are known; past the sampler, which knows none that has the id of its job."""
        from opentelemetry.sdk.trace import ReadableSpan

        of, parent = _context(job_id), None if is_root else _context(job_id)
        own = of if is_root else _context(job_id, self._provider.id_generator.generate_span_id())
        said = _said(job_id, about)
        span = ReadableSpan(name, own, parent, self._resource, said, start_time=began, end_time=end)
        self._sender.on_end(span)


def _is_asked_for() -> bool:
    said = os.environ.get
    is_off = said("OTEL_SDK_DISABLED", "").lower() == "true" or said("OTEL_TRACES_EXPORTER", "otlp") != "otlp"
    return not is_off and any(said(name) for name in _ASKS)


def _context(job_id: uuid.UUID, span_id: int | None = None) -> SpanContext:
    """The span of that id in the trace of a job; its root where none is given."""
    from opentelemetry import trace

    sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    return trace.SpanContext(job_id.int, span_id or job_id.int & _LOWER, is_remote=True, trace_flags=sampled)


def _said(job_id: uuid.UUID, about: dict[str, Any]) -> dict[str, Any]:
    named = {f"noria.{name}": value for name, value in about.items() if value is not None}
    return {"noria.job": str(job_id), **named}


def _host(span: Any, request: Any, *_: Any) -> None:
    """Of an address only its host is told."""
    if (url := getattr(request, "url", None)) is not None:
        span.set_attribute("server.address", str(url.host))


def _cleaned(exporter: SpanExporter) -> SpanExporter:
    """The exporter, which is given nothing that is not in `_TOLD`."""
    export = exporter.export
    exporter.export = lambda spans: export([_clean(span) for span in spans])  # type: ignore[method-assign]
    return exporter


def _clean(span: ReadableSpan) -> ReadableSpan:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Status

    said = {name: value for name, value in (span.attributes or {}).items() if name in _TOLD}
    raised = [event.attributes.get("exception.type") for event in span.events if event.attributes]
    said |= {"error.type": raised[-1]} if raised and raised[-1] else {}
    return ReadableSpan(
        *(span.name, span.context, span.parent, span.resource, said),
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1e6) * 1000
