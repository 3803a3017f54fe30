"""Spans: one trace a job, whoever works on it; nothing secret in it, and none of it told to those who are called."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from serving import Served, served
from sqlalchemy import text
from sqlalchemy.exc import DataError
from stage import Stage
from werkzeug import Request, Response

from worker import tracing
from worker.states import State

trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

PROMPT = "a prompt that nobody else may read"


class Collector:
    """What an OTLP collector was sent."""

    def __init__(self, server: HTTPServer) -> None:
        self.bodies: list[bytes] = []
        server.expect_request("/v1/traces", method="POST").respond_with_handler(self._take)

    def _take(self, request: Request) -> Response:
        self.bodies.append(request.get_data())
        return Response(b"", content_type="application/x-protobuf")

    def spans(self) -> list[Any]:
        """The spans that were sent; nothing is recorded any more."""
        tracing.stop()
        sent = [trace_service.ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [span for each in sent for of in each.resource_spans for part in of.scope_spans for span in part.spans]


@pytest.fixture
def collector(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", httpserver.url_for(""))
    made = Collector(httpserver)
    tracing.start("noria-test")
    yield made
    tracing.stop()


def submitted(api: Served, key: str, **more: Any) -> uuid.UUID:
    body = {"kind": "text-to-video", "model": "wan2.5-t2v-preview", "input": {"prompt": PROMPT}, **more}
    with api.http(key) as http:
        answer = http.post("/v1/jobs", json=body)
    assert answer.status_code == 201, answer.text
    return uuid.UUID(answer.json()["id"])


def text_of(spans: list[Any]) -> dict[str, set[str]]:
    """Every value of every attribute, by its name."""
    found: dict[str, set[str]] = {}
    for span in spans:
        for said in span.attributes:
            found.setdefault(said.key, set()).add(said.value.string_value or str(said.value.int_value))
    return found


def test_a_job_is_one_trace_that_holds_no_secret_and_that_nobody_is_told(
    collector: Collector, environment: dict[str, str], play: Stage, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/hook").respond_with_data("")
    signed: list[Any] = []
    play.ctx.bucket._s3.meta.events.register("before-send.s3", lambda request, **_: signed.append(request.headers))
    with served(environment, dashscope_url=play.sandbox.url) as api:
        key = api.key(play.project.name)
        job_id = submitted(api, key, webhook_url=httpserver.url_for("/hook?token=hush"))
        play.drive(lambda: play.sql("select state from jobs")[0]["state"], lambda state: state == State.SUCCEEDED)
        play.drive(play.deliveries, lambda found: found and all(each.finished_at for each in found))

    spans = collector.spans()
    raw = b"".join(collector.bodies)

    assert {span.trace_id for span in spans} == {job_id.bytes}
    [root] = [span for span in spans if not span.parent_span_id]
    assert (root.name, root.span_id) == ("text-to-video wan2.5-t2v-preview", job_id.bytes[8:])
    assert {span.name for span in spans if span.parent_span_id == root.span_id} == {
        *("submit", "create", "poll", "copy", "webhook")
    }
    assert {span.parent_span_id for span in spans if span != root} <= {span.span_id for span in spans}
    assert {"POST", "GET", "S3.PutObject", "UPDATE"} <= {span.name for span in spans}
    assert text_of(spans)["noria.job"] == {str(job_id)}
    assert text_of(spans)["server.address"] == {"127.0.0.1", "localhost"}  # the receiver's is the second
    secrets = [
        PROMPT,
        key,
        "sk-test",
        "hush",
        "whsec_",
        "Signature",
        "X-Amz",
        environment["NORIA_S3_SECRET_ACCESS_KEY"],
    ]
    assert [secret for secret in secrets if secret.encode() in raw] == []
    called = [dict(request.headers) for request, _ in httpserver.log if request.path == "/hook"] + signed
    assert len(called) > 1
    assert [name for headers in called for name in headers if "trace" in name.lower()] == []


def test_an_error_is_told_by_its_type_alone(collector: Collector, play: Stage) -> None:
    with (
        play.ctx.engine.connect() as connection,
        pytest.raises(DataError),
        tracing.step(uuid.uuid4(), None, "create"),
    ):
        connection.execute(text("select cast(:value as int)"), {"value": "hush"})

    spans = collector.spans()

    assert text_of(spans)["error.type"] >= {"psycopg.errors.InvalidTextRepresentation"}
    assert b"hush" not in b"".join(collector.bodies)


def test_a_part_is_in_the_trace_of_its_parent(collector: Collector) -> None:
    part, parent = uuid.uuid4(), uuid.uuid4()
    with tracing.step(part, parent, "create"):
        pass

    [span] = collector.spans()

    assert (span.trace_id, span.parent_span_id) == (parent.bytes, parent.bytes[8:])
    assert text_of([span])["noria.job"] == {str(part)}


def test_what_belongs_to_no_job_is_not_recorded(collector: Collector, play: Stage) -> None:
    play.tick()

    assert collector.spans() == []


@pytest.mark.parametrize(
    "said",
    [{}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}],
    ids=["unasked", "no exporter", "disabled"],
)
def test_nothing_is_imported_where_nobody_asks_for_spans(said: dict[str, str]) -> None:
    program = (
        "import sys, uuid; from worker import tracing; tracing.start('x')\n"
        "with tracing.step(uuid.uuid4(), None, 'create'): pass\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, **said}, check=False)

    assert done.returncode == 0


def test_without_the_extra_a_job_runs_all_the_same(monkeypatch: pytest.MonkeyPatch, written: Callable[[], str]) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)

    tracing.start("noria-test")

    assert "the extra otel is not installed" in written()
    with tracing.step(uuid.uuid4(), None, "create"):
        pass
