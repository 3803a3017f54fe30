"""The HTTP API, as its users meet it: over a socket, on real servers."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import httpx_sse
import pytest
import redis
import time_machine
from serving import CLIP, PATIENCE, Served, eventually, served, settings_of
from sqlalchemy.event import listen, remove
from structlog.testing import capture_logs

from api import callers, limits, submissions
from api.bodies import BODY_LIMIT
from api.client import ApiError, Client
from api.forms import example
from worker import catalog, keys, moves, text
from worker.catalog import Model
from worker.database import engine as make_engine
from worker.errors import MOST_FAULTS, Conflict, Fault, InvalidInput, NotFound
from worker.jobs import submission
from worker.kinds import OFFERED
from worker.states import Move, State
from worker.storage import Bucket, Expected
from worker.tables import Project

JSON = {"content-type": "application/json"}
SSE = {"accept": "text/event-stream"}


def post(http: httpx.Client, body: Any, path: str = "/v1/jobs", **headers: str) -> httpx.Response:
    """Posts what httpx itself would refuse to encode, too."""
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    return http.post(path, content=json.dumps(body), headers={**JSON, **said})


def submitted(http: httpx.Client, **more: Any) -> dict[str, Any]:
    answer = post(http, CLIP | more)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def faults(answer: httpx.Response) -> dict[str, str]:
    """Pointer → code of a 422."""
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "invalid_input"
    return {fault["pointer"]: fault["code"] for fault in answer.json()["errors"]}


@contextmanager
def changed(model: Model, **fields: Any) -> Iterator[None]:
    """The catalog's model as another release may have it."""
    kept = {name: getattr(model, name) for name in fields}
    model.__dict__.update(fields)
    yield
    model.__dict__.update(kept)


@contextmanager
def read(api: Served) -> Iterator[list[int]]:
    """The bytes of each result that the API gets from Postgres."""
    results: list[int] = []

    def note(_: Any, cursor: Any, *__: Any) -> None:
        found = cursor.pgresult
        cells = [found.get_value(row, n) for row in range(found.ntuples) for n in range(found.nfields)]
        results.append(sum(len(cell) for cell in cells if cell))

    engines = (api.engine, api.app.state.context.reader)
    for engine in engines:
        listen(engine, "after_cursor_execute", note)
    yield results
    for engine in engines:
        remove(engine, "after_cursor_execute", note)


@contextmanager
def statements(api: Served) -> Iterator[list[str]]:
    """The statements that the API sends to Postgres."""
    sent: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        sent.append(statement)

    listen(api.engine, "before_cursor_execute", note)
    yield sent
    remove(api.engine, "before_cursor_execute", note)


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["data"]]


def moved(api: Served, job_id: str, *states: State) -> None:
    """Moves a job along, as workers would."""
    for state in states:
        with api.engine.begin() as connection:
            now = connection.exec_driver_sql("select statement_timestamp()").scalar_one()
            failed = {"error": {"code": "x", "message": "y"}} if state is State.FAILED else {}
            moves.record(connection, api.row(job_id), Move(state, columns=failed), now)


def _about(job_id: str, events: Any) -> str | None:
    """Flower's next event, if it is about this job: those of other tests' go to the same subscribers."""
    told = events.get_message(ignore_subscribe_messages=True, timeout=0.1)
    event = b64decode(json.loads(told["data"])["body"]).decode() if told else ""
    return event if job_id in event else None


class TestSubmitting:
    def test_a_job_is_made_with_the_catalogs_id_and_complete_input(self, http: httpx.Client, api: Served) -> None:
        answer = post(http, CLIP | {"model": "wan2.5-t2v-plus", "metadata": {"sku": "A17"}, "custom_id": "row-17"})

        made = answer.json()
        assert answer.status_code == 201
        assert answer.headers["location"] == f"/v1/jobs/{made['id']}"
        assert made["model"] == "wan2.5-t2v-preview"
        assert made["input"] == CLIP["input"] | {
            "size": "832*480",
            "duration": 5,
            "prompt_extend": True,
            "watermark": False,
        }
        assert made["cost"] == {"currency": "CNY", "estimated": "1.50", "actual": None, "billed": "no"}
        assert made["waiting_on"]["code"] == "slot"
        assert (made["metadata"], made["custom_id"], made["state"]) == ({"sku": "A17"}, "row-17", "queued")
        assert api.sql("select entry, micros from ledger") == [{"entry": "reserve", "micros": 1_500_000}]
        shown = http.get(made["urls"]["self"]).json()
        assert {**shown, "warnings": []} == made | {"waiting_on": made["waiting_on"] | {"position": 1}}

    def test_the_documented_example_of_each_kind_can_be_sent_as_it_is(self, http: httpx.Client) -> None:
        assert {kind: post(http, example(kind)).status_code for kind in OFFERED} == dict.fromkeys(OFFERED, 201)

    def test_every_wrong_field_is_named_in_one_answer(self, http: httpx.Client) -> None:
        body = CLIP | {
            "input": {"prompt": "a\ud800b", "size": "1*1", "sise": "1"},
            "metadata": {"sku": 17, "nul": "a\0b"},
            "priority": "urgent",
            "webhook_url": "http://10.0.0.1/",
            "webhook_events": ["job.done"],
            "custom_id": "",
            "extra": {"deep": 1},
        }

        found = faults(post(http, body))

        assert found == {
            "/input/prompt": "bad_text",
            "/input/size": "not_allowed",
            "/input/sise": "unknown_field",
            "/metadata/sku": "string_type",
            "/metadata/nul": "bad_text",
            "/priority": "not_allowed",
            "/webhook_url": "url_not_allowed",
            "/webhook_events/0": "not_allowed",
            "/custom_id": "too_short",
            "/extra": "unknown_field",
        }

    def test_a_wrong_kind_a_wrong_model_and_a_wrong_input_are_named_together(self, http: httpx.Client) -> None:
        assert faults(post(http, {"kind": "opera", "model": "wan9"})) == {
            "/kind": "unknown_kind",
            "/model": "unknown_model",
            "/input": "required",
        }
        assert faults(post(http, CLIP | {"model": "wan9", "input": {"foo": 1}})) == {
            "/model": "unknown_model",
            "/input/prompt": "required",
            "/input/foo": "unknown_field",
        }

    def test_an_unknown_model_is_answered_with_near_ones(self, http: httpx.Client) -> None:
        answer = post(http, CLIP | {"model": "wan2.5-t2v-previw"})

        assert "wan2.5-t2v-preview" in answer.json()["errors"][0]["message"]

    def test_limits_of_the_body(self, http: httpx.Client) -> None:
        cases: list[tuple[Any, dict[str, str]]] = [
            ([], {"": "not_an_object"}),
            ({}, {"/kind": "required", "/model": "required", "/input": "required"}),
            (CLIP | {"input": []}, {"/input": "dict_type"}),
            (CLIP | {"metadata": {str(n): "" for n in range(17)}}, {"/metadata": "too_long"}),
            (CLIP | {"metadata": {"k" * 65: ""}}, {f"/metadata/{'k' * 65}/[key]": "too_long"}),
            (CLIP | {"metadata": {"k": "v" * 513}}, {"/metadata/k": "too_long"}),
            (CLIP | {"metadata": {"a/b~\ud800": "v"}}, {"/metadata/a~1b~0\ufffd": "bad_text"}),
            (CLIP | {"custom_id": "c" * 129}, {"/custom_id": "too_long"}),
            (CLIP | {"webhook_url": "https://10.1.2.3/"}, {"/webhook_url": "url_not_allowed"}),
            (CLIP | {"webhook_url": "nowhere"}, {"/webhook_url": "url_not_allowed"}),
            (CLIP | {"not_after": "2026-12-01T06:00:00"}, {"/not_after": "bad_time"}),
            (CLIP | {"not_after": 1}, {"/not_after": "datetime_type"}),
        ]
        for body, found in cases:
            assert faults(post(http, body)) == found

    def test_a_body_nested_too_deep_is_refused(self, http: httpx.Client) -> None:
        deep: Any = "x"
        for _ in range(40):
            deep = [deep]

        assert "too_deep" in faults(post(http, CLIP | {"input": {"prompt": deep}})).values()
        endless = http.post("/v1/jobs", content=b"[" * 100_000, headers=JSON)
        assert faults(endless) == {"": "too_deep"}

    @pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "1e300", str(2**63), "9" * 5000])
    def test_a_number_that_cannot_be_kept_is_refused_where_it_stands(self, http: httpx.Client, number: str) -> None:
        bodies = {
            "/v1/jobs": '{"kind": "text-to-video", "input": {"prompt": "a", "seed": %s}}',
            "/v1/jobs?dry_run=true": '{"kind": "text", "input": {"prompt": "a", "max_tokens": %s}}',
            "/v1/jobs?dry_run=1": '{"kind": "summary", "input": {"style": {"schema": %s}}}',
            "/v1/schedules": '{"name": "n", "cron": "0 0 * * *", "template": {"input": {"seed": %s}}}',
        }

        found = [http.post(path, content=body % number, headers=JSON) for path, body in bodies.items()]

        assert ["bad_number" in faults(answer).values() for answer in found] == [True] * 4
        where = ["/input/seed", "/input/max_tokens", "/input/style/schema", "/template/input/seed"]
        assert [pointer for pointer, answer in zip(where, found, strict=True) if pointer in faults(answer)] == where

    def test_of_many_faults_the_first_hundred_are_named(self, http: httpx.Client) -> None:
        """Each of the form's and each of the catalog's was once compared with each: 20 s for such a body."""
        many = {f"k{n}": 1 for n in range(15_000)}
        bodies: dict[str, Any] = {
            "/v1/jobs": CLIP | {"input": many, "metadata": {"k": "v"}} | many,
            "/v1/jobs?dry_run=1": CLIP | {"metadata": {f"k{n}": "\0" for n in range(15_000)}},
            "/v1/jobs?dry_run=true": {"kind": "speech", "input": {"paragraphs": [1] * 100_000}},
            "/v1/schedules": {"name": "n", "cron": "0 0 * * *", "template": {"input": {"prompt": "{{a}}" * 50_000}}},
        }

        for path, body in bodies.items():
            answer = post(http, body, path)

            assert len(answer.json()["errors"]) == MOST_FAULTS
            assert "no further ones were looked for" in answer.json()["detail"]

    def test_a_dry_run_prices_and_makes_nothing(self, http: httpx.Client, api: Served) -> None:
        answer = post(http, CLIP, "/v1/jobs?dry_run=true")

        assert answer.status_code == 200
        assert answer.json()["object"] == "estimate"
        assert answer.json()["cost"] == {"currency": "CNY", "estimated": "1.50"}
        assert api.sql("select id from jobs") == []
        assert faults(post(http, CLIP | {"x": 1}, "/v1/jobs?dry_run=true")) == {"/x": "unknown_field"}

    def test_a_model_that_others_report_as_retired_is_taken_with_a_warning(self, http: httpx.Client) -> None:
        picture = {"kind": "text-to-image", "model": "qwen-image-plus", "input": {"prompt": "a shop"}}
        keyed = {"idempotency-key": "k"}

        made, again = (http.post("/v1/jobs", json=picture, headers=keyed) for _ in range(2))
        dry = post(http, picture, "/v1/jobs?dry_run=true")

        message = "qwen-image-plus was retired by the provider, by others' reports on 2026-10-10: take qwen-image-2.0"
        warned = [{"pointer": "/model", "code": "retired_model", "message": message}]
        assert [answer.status_code for answer in (made, again, dry)] == [201, 200, 200]
        assert [answer.json()["warnings"] for answer in (made, again, dry)] == [warned] * 3
        assert post(http, CLIP).json()["warnings"] == []
        reduced = {"documents": [{"text": "x"}], "reduce_model": "qwen3-max"}
        summary = post(http, {"kind": "summary", "model": "qwen-flash", "input": reduced}, "/v1/jobs?dry_run=true")
        assert [warning["pointer"] for warning in summary.json()["warnings"]] == ["/input/reduce_model"]

    def test_a_model_that_the_provider_has_retired_is_refused_and_the_next_one_named(
        self, http: httpx.Client, api: Served
    ) -> None:
        answer = post(http, {"kind": "text", "model": "qwen-turbo", "input": {"prompt": "x"}})

        assert faults(answer) == {"/model": "retired_model"}
        assert "on 2026-10-10: take qwen3.6-flash" in answer.text
        assert api.sql("select id from jobs") == []
        shown = http.get("/v1/models/qwen-turbo").json()
        assert (shown["retired"], shown["retired_by"], shown["successor"]) == ("2026-10-10", "notice", "qwen3.6-flash")

    def test_batches_are_refused_where_no_account_can_have_them(self, environment: dict[str, str]) -> None:
        abroad = {**environment, "NORIA_DASHSCOPE_REGION": "ap-southeast-1"}
        batched = {"documents": [{"text": "x"}], "mode": "batch"}
        with served(abroad) as api, api.http(api.key("spring")) as http:
            refused = post(http, {"kind": "summary", "model": "qwen-flash", "input": batched})
            taken = post(http, {"kind": "summary", "model": "qwen-plus", "input": batched})

        assert faults(refused) == {"/model": "model_not_in_region"}
        assert "qwen-flash by batch is offered in cn-beijing" in refused.text
        assert taken.status_code == 201

    def test_a_last_time_to_send_is_kept(self, http: httpx.Client) -> None:
        at = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)

        job = submitted(http, not_after=at.astimezone(ZoneInfo("Asia/Shanghai")).isoformat())

        assert job["not_after"] == at.strftime("%Y-%m-%dT%H:%M:%S.000Z")

    def test_a_submission_wakes_the_tick_and_tells_flower(self, environment: dict[str, str]) -> None:
        with served(environment) as api, redis.Redis.from_url(environment["NORIA_BROKER_URL"]) as valkey:
            events = valkey.pubsub()
            events.psubscribe("*celeryev*")
            eventually(lambda: events.get_message(timeout=0.1))
            with api.http(api.key("spring")) as http:
                job = submitted(http)
            assert eventually(lambda: valkey.llen("noria:tick"))
            event = eventually(lambda: _about(job["id"], events))
        assert "kitten" not in event

    def test_a_submission_answers_within_a_second_while_the_broker_hangs(self, environment: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            broker = f"redis://127.0.0.1:{deaf.getsockname()[1]}/0"
            with served(environment | {"NORIA_BROKER_URL": broker}) as api, api.http(api.key("spring")) as http:
                submitted(http)  # opens the connections to Postgres
                began = time.monotonic()
                for _ in range(3):
                    submitted(http)
                took = time.monotonic() - began

        assert took < 1.0

    def test_a_submission_is_one_statement(
        self, http: httpx.Client, api: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(callers, "REMEMBERED", 3600.0)
        monkeypatch.setattr(limits, "_COUNTED_SECONDS", 3600.0)
        submitted(http)

        with statements(api) as sent:
            plain = submitted(http)
            with_a_key = post(http, CLIP, idempotency_key="k1").json()

        assert [statement.startswith("WITH born AS") for statement in sent] == [True, True]
        for job in (plain, with_a_key):
            row, event = api.row(job["id"]), api.sql("select * from events where job_id = :id", id=job["id"])[0]
            reserved = api.sql("select * from ledger where job_id = :id", id=job["id"])[0]
            assert row.created_at == row.state_at == row.run_at == row.rank_at == event["at"] == reserved["at"]
            assert (event["type"], event["left"], event["entered"], event["sequence"]) == (
                "job.queued",
                None,
                "queued",
                1,
            )
            assert (reserved["entry"], reserved["micros"]) == ("reserve", row.estimate)


class TestIdempotency:
    def test_the_same_key_and_body_give_the_first_job(self, http: httpx.Client, api: Served) -> None:
        first = post(http, CLIP, idempotency_key="k1")
        again = post(http, dict(reversed(CLIP.items())), idempotency_key="k1")

        assert [len(api.sql(f"select from {table}")) for table in ("jobs", "events", "ledger")] == [1, 1, 1]
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.json()["id"] == first.json()["id"]
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"

    def test_another_body_under_a_known_key_is_a_conflict(self, http: httpx.Client) -> None:
        post(http, CLIP, idempotency_key="k1")

        for other in ({"custom_id": "other"}, {"model": "wan2.5-t2v-plus"}):
            answer = post(http, CLIP | other, idempotency_key="k1")

            assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_key_reused")
        assert faults(post(http, CLIP | {"other": 1}, idempotency_key="k1")) == {"/other": "unknown_field"}

    def test_a_repeat_finds_its_job_whatever_the_catalog_has_become(self, http: httpx.Client, api: Served) -> None:
        first = post(http, CLIP, idempotency_key="k1").json()
        model = api.app.state.context.catalog.model(CLIP["model"])

        with changed(model, default=model.default | {"watermark": True}):
            with_another_default = post(http, CLIP, idempotency_key="k1")
        with changed(model, retired=date(2026, 1, 1), retired_by="notice", successor="wan2.6-t2v"):
            retired = post(http, CLIP, idempotency_key="k1")
            new = post(http, CLIP, idempotency_key="k2")

        assert [with_another_default.json()["id"], retired.json()["id"]] == [first["id"]] * 2
        assert retired.headers["idempotency-replayed"] == "true"
        assert faults(new) == {"/model": "retired_model"}

    def test_a_key_that_was_kept_with_the_digest_of_older_releases_finds_its_job(
        self, http: httpx.Client, api: Served
    ) -> None:
        first = post(http, CLIP, idempotency_key="k1").json()
        context = api.app.state.context
        prepared = submission.prepare(
            context.catalog, context.settings, submission.Submission(**CLIP), datetime.now(UTC)
        )
        api.sql("update idempotency_keys set request_hash = :old", old=prepared.digest)

        assert post(http, CLIP, idempotency_key="k1").json()["id"] == first["id"]
        assert post(http, CLIP | {"custom_id": "other"}, idempotency_key="k1").status_code == 409

    def test_submissions_under_one_key_that_race_make_one_job(self, http: httpx.Client, api: Served) -> None:
        barrier = threading.Barrier(8)

        def race(_: int) -> httpx.Response:
            barrier.wait(PATIENCE)
            return post(http, CLIP, idempotency_key="raced")

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(race, range(8)))

        assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert len(api.sql("select id from jobs")) == len(api.sql("select id from ledger")) == 1

    def test_a_key_that_is_waited_for_is_found_once_its_first_submission_commits(
        self, http: httpx.Client, api: Served
    ) -> None:
        """The other transaction holds the key uncommitted: the request waits, and finds its job."""
        project = api.sql("select * from projects")[0]
        context = api.app.state.context
        said = submission.Submission(**CLIP)
        with ThreadPoolExecutor(1) as pool:
            with api.engine.begin() as connection:
                now = connection.exec_driver_sql("select statement_timestamp()").scalar_one()
                prepared = submission.prepare(context.catalog, context.settings, said, now)
                job, _ = submission.submit(
                    connection, Project.of(project), prepared, submission.Sent("held", text.digest(CLIP)), now
                )
                answer = pool.submit(post, http, CLIP, idempotency_key="held")
                eventually(lambda: api.sql("select 1 from pg_locks where not granted"))
            assert answer.result(PATIENCE).json()["id"] == str(job.id)
            assert answer.result().status_code == 200

    def test_a_key_of_no_length_or_too_much_is_refused(self, http: httpx.Client) -> None:
        assert faults(post(http, CLIP, idempotency_key="k" * 256)) == {"/header/idempotency-key": "too_long"}


class TestLimits:
    def test_a_key_over_its_rate_is_told_when_to_come_back(self, environment: dict[str, str]) -> None:
        with served(environment, api_rate=2) as api, api.http(api.key("spring")) as http:
            answers = [http.get("/v1/models?kind=none") for _ in range(8)]
            other = api.http(api.key("spring")).get("/v1/models?kind=none")

        assert answers[0].status_code == 200
        assert (answers[-1].status_code, answers[-1].json()["code"]) == (429, "too_many_requests")
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert other.status_code == 200

    def test_a_project_with_too_many_unfinished_jobs_is_refused_until_one_ends(
        self, environment: dict[str, str]
    ) -> None:
        with served(environment, max_waiting=2) as api, api.http(api.key("spring")) as http:
            first = post(http, CLIP, idempotency_key="k1").json()
            submitted(http)

            full = post(http, CLIP)
            replay = post(http, CLIP, idempotency_key="k1")
            other = api.http(api.key("summer"))
            elsewhere = post(other, CLIP)
            http.post(f"/v1/jobs/{first['id']}/cancel")

            assert (full.status_code, full.json()["code"]) == (429, "too_many_waiting")
            assert int(full.headers["retry-after"]) >= 1
            assert (replay.status_code, elsewhere.status_code) == (200, 201)
            assert post(http, CLIP).status_code == 201

    def test_a_body_is_counted_as_it_comes(self, http: httpx.Client) -> None:
        def chunks() -> Iterator[bytes]:  # sent chunked, so no Content-Length says how much it is
            yield from (b" " * 65536 for _ in range(BODY_LIMIT // 65536))
            yield json.dumps(CLIP).encode()

        answer = http.post("/v1/jobs", content=chunks(), headers=JSON)

        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
        assert answer.headers["content-type"] == "application/problem+json"

    def test_a_body_of_the_most_bytes_is_read(self, http: httpx.Client) -> None:
        body = json.dumps(CLIP).encode()

        assert http.post("/v1/jobs", content=body.ljust(BODY_LIMIT), headers=JSON).status_code == 201
        assert http.post("/v1/jobs", content=body.ljust(BODY_LIMIT + 1), headers=JSON).status_code == 413


class TestRefusals:
    def test_each_is_a_problem(self, http: httpx.Client) -> None:
        cases: list[tuple[str, str, bytes, dict[str, str], int, str]] = [
            ("GET", "/nowhere", b"", {}, 404, "no_such_route"),
            ("DELETE", "/v1/jobs", b"", {}, 405, "method_not_allowed"),
            ("GET", "/v1/jobs/not-an-id", b"", {}, 404, "not_found"),
            ("GET", "/v1/jobs/01990000-0000-7000-8000-000000000000", b"", {}, 404, "not_found"),
            ("GET", "/v1/jobs/01990000-0000-7000-8000-000000000000/outputs/x", b"", {}, 404, "not_found"),
            ("GET", "/v1/models/wan9", b"", {}, 404, "not_found"),
            ("POST", "/v1/jobs", b"{", JSON, 400, "invalid_json"),
            ("POST", "/v1/jobs", b"", JSON, 400, "invalid_json"),
            ("POST", "/v1/jobs", b"\xff", JSON, 400, "invalid_json"),
            ("POST", "/v1/jobs", b"{}", {"content-type": "text/plain"}, 415, "not_json"),
            ("GET", "/v1/jobs", b"", {"authorization": "Bearer noria_wrong"}, 401, "unauthorized"),
            ("GET", "/v1/jobs", b"", {"noria-project": "winter"}, 404, "not_found"),
        ]
        for method, path, content, headers, status, code in cases:
            answer = http.request(method, path, content=content, headers=headers)

            problem = answer.json()
            assert (answer.status_code, problem["code"]) == (status, code)
            assert answer.headers["content-type"] == "application/problem+json"
            assert problem["type"] == f"urn:noria:problem:{code}"
            assert problem["request_id"] == answer.headers["x-request-id"]

    def test_a_fault_of_our_own_says_nothing_of_our_insides(self, http: httpx.Client, api: Served) -> None:
        api.sql("alter table jobs rename column labels to lables")

        with capture_logs() as lines:
            answer = post(http, CLIP)

        assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        assert "labels" not in answer.text
        failed = next(line for line in lines if line["event"] == "a request failed")
        assert failed["request"] == answer.headers["x-request-id"]

    def test_a_database_that_is_away_is_a_503(self, environment: dict[str, str]) -> None:
        away = environment | {"NORIA_DATABASE_URL": "postgresql+psycopg://app:secret@127.0.0.1:9/none"}
        with served(away) as api, api.http("noria_" + "a" * 43) as http:
            answer = http.get("/v1/jobs")

        assert (answer.status_code, answer.json()["code"]) == (503, "database_away")
        assert "retry-after" in answer.headers
        assert "secret" not in answer.text

    def test_a_wrong_filter_is_named(self, http: httpx.Client) -> None:
        assert faults(http.get("/v1/jobs?statee=queued")) == {"/query/statee": "unknown_filter"}
        assert faults(http.get("/v1/jobs?state=done&limit=0&cursor=x&created_after=noon&kind=%00")) == {
            "/query/state/0": "not_allowed",
            "/query/limit": "greater_than_equal",
            "/query/cursor": "uuid_parsing",
            "/query/created_after": "datetime_from_date_parsing",
            "/query/kind": "bad_text",
        }

    @pytest.mark.parametrize(
        "hostile",
        ["1e9", "1e999", "-1", "9" * 5000, "NaN", "inf", "%00", "%ED%A0%80", "1e308", "0001-01-01T00:00:00%2B23:59"],
    )
    def test_no_hostile_value_of_a_query_or_a_header_is_a_fault_of_ours(self, http: httpx.Client, hostile: str) -> None:
        job = submitted(http)["id"]
        names = ("limit", "cursor", "created_after", "created_before", "kind", "model", "custom_id", "q", "state")
        asked = [f"/v1/jobs?{name}={hostile}" for name in (*names, "metadata.a", f"metadata.{hostile}", hostile)]
        asked += [f"/v1/jobs/{job}/{list}?{name}={hostile}" for list in ("events", "children") for name in names]
        asked += [f"/v1/{list}?{name}={hostile}" for list in ("files", "schedules", "models") for name in names]
        asked += [f"/v1/schedules/{job}/runs?cursor={hostile}", f"/v1/jobs/{hostile}", f"/v1/models/{hostile}"]
        asked += [f"/v1/jobs/{job}/outputs/{hostile}", f"/v1/files/{hostile}", f"/v1/schedules?name={hostile}"]

        answered = {path: http.get(path).status_code for path in asked}
        followed = http.get(f"/v1/jobs/{job}/events", headers={"last-event-id": hostile[:100]}).status_code

        assert {path: status for path, status in answered.items() if status not in (200, 404, 422)} == {}
        assert followed in (200, 422)


class TestListing:
    def test_filters_narrow_together(self, http: httpx.Client) -> None:
        plain = submitted(http)["id"]
        labelled = submitted(http, metadata={"sku": "A17", "a.b": "c"}, custom_id="row-17")["id"]
        picture = post(http, example("text-to-image") | {"metadata": {"sku": "A17"}}).json()
        canceled = submitted(http)["id"]
        http.post(f"/v1/jobs/{canceled}/cancel")

        for query, found in {
            "": [canceled, picture["id"], labelled, plain],
            "state=canceled": [canceled],
            "state=queued&state=canceled&kind=text-to-video": [canceled, labelled, plain],
            "state=queued,canceled&kind=text-to-video": [canceled, labelled, plain],
            "metadata.sku=A17": [picture["id"], labelled],
            "metadata.sku=A17&metadata.a.b=c": [labelled],
            "metadata.sku=A1": [],
            "custom_id=row-17": [labelled],
            "model=wan2.5-t2v-plus&state=queued": [labelled, plain],
            f"model={picture['model']}": [picture["id"]],
            "q=ROW-1": [labelled],
            "q=flower": [picture["id"]],
            "q=%25": [],
            "created_after=2999-01-01T00:00:00Z": [],
            "created_before=2999-01-01T00:00:00%2B08:00&kind=text-to-image": [picture["id"]],
        }.items():
            assert ids(http.get(f"/v1/jobs?{query}")) == found, query

    def test_pages_are_stable_while_jobs_come_in(self, http: httpx.Client) -> None:
        made = [submitted(http)["id"] for _ in range(5)]

        first = http.get("/v1/jobs?limit=2").json()
        submitted(http)
        second = http.get("/v1/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()
        third = http.get("/v1/jobs", params={"limit": 2, "cursor": second["next_cursor"]}).json()

        seen = [job["id"] for page in (first, second, third) for job in page["data"]]
        assert seen == made[::-1]
        assert [page["has_more"] for page in (first, second, third)] == [True, True, False]
        assert third["next_cursor"] is None

    def test_no_list_reads_what_it_does_not_show(self, http: httpx.Client, api: Served) -> None:
        """Twenty pages of a hundred such jobs, loaded whole and cut then, took 3 GB."""
        narration = submitted(http, kind="speech", model=None, input={"text": "a long story. " * 10_000})
        api.sql("update jobs set result = input, note = input, sources = jsonb_build_array(input)")
        job = {"id": narration["id"]}
        api.sql(
            """insert into jobs (project_id, kind, model, input, result, parent_id, round, place)
               select project_id, kind, model, input, input, id, 1, 0 from jobs where id = :id""",
            **job,
        )
        api.sql(
            """insert into attempts (job_id, project_id, number, owner, account, region, model, request_hash, output)
               select id, project_id, 1, '', '', '', model, '', input from jobs where id = :id""",
            **job,
        )
        template = {"kind": "speech", "input": narration["input"]}
        post(http, {"name": "n", "cron": "0 0 * * *", "template": template}, "/v1/schedules")
        url = narration["urls"]["self"]

        for path in ("/v1/jobs", f"{url}/children", f"{url}/attempts", f"{url}/events", "/v1/schedules"):
            with read(api) as results:
                answer = http.get(path)

            assert len(answer.json()["data"]) == 1
            assert max(results) < 10_000, path


class TestHistory:
    def test_events_are_pages_of_recorded_moves(self, http: httpx.Client, api: Served) -> None:
        job = submitted(http)
        http.post(f"/v1/jobs/{job['id']}/cancel")

        page = http.get(job["urls"]["events"], params={"limit": 1}).json()
        rest = http.get(job["urls"]["events"], params={"cursor": page["next_cursor"]}).json()

        told = page["data"] + rest["data"]
        assert [(event["sequence"], event["type"]) for event in told] == [(1, "job.queued"), (2, "job.canceled")]
        assert (told[1]["from"], told[1]["to"], rest["has_more"]) == ("queued", "canceled", False)

    def test_a_stream_goes_on_until_the_job_has_ended(self, http: httpx.Client, api: Served) -> None:
        job = submitted(http)
        seen = []

        with httpx_sse.connect_sse(http, "GET", job["urls"]["events"]) as source:
            for event in source.iter_sse():
                seen.append((event.id, event.event, event.json()["to"]))
                if event.id == "1":
                    moved(api, job["id"], State.HELD)
                if event.id == "2":
                    moved(api, job["id"], State.FAILED)

        assert seen == [("1", "job.queued", "queued"), ("2", "job.held", "held"), ("3", "job.failed", "failed")]

    def test_a_stream_is_taken_up_after_the_last_event_that_was_seen(self, http: httpx.Client, api: Served) -> None:
        job = submitted(http)
        moved(api, job["id"], State.HELD, State.FAILED)

        with httpx_sse.connect_sse(http, "GET", job["urls"]["events"], headers={"last-event-id": "2"}) as source:
            seen = [event.id for event in source.iter_sse()]
        over = http.get(job["urls"]["events"], headers={**SSE, "last-event-id": "3"})

        assert seen == ["3"]
        assert over.status_code == 204

    def test_waiting_streams_hold_no_thread_and_no_connection(self, http: httpx.Client, api: Served) -> None:
        """More streams than there are threads, and three times the connections, and the API still answers."""
        job = submitted(http)
        with (
            ThreadPoolExecutor(60) as pool,
            httpx.Client(
                base_url=api.url, headers=http.headers, limits=httpx.Limits(max_connections=None), timeout=PATIENCE
            ) as followers,
        ):

            def follow(_: int) -> list[str]:
                with httpx_sse.connect_sse(followers, "GET", job["urls"]["events"]) as source:
                    return [event.event for event in source.iter_sse()]

            streams = [pool.submit(follow, n) for n in range(60)]
            eventually(lambda: len(api.app.state.context.watch) == 60)
            began = time.monotonic()
            assert http.get(job["urls"]["self"]).status_code == 200
            took = time.monotonic() - began
            in_use = api.engine.pool.checkedout()  # type: ignore[attr-defined]
            http.post(job["urls"]["cancel"])
            told = [stream.result(PATIENCE) for stream in streams]

        assert took < 1.0
        assert in_use <= 1
        assert told == [["job.queued", "job.canceled"]] * 60
        eventually(lambda: len(api.app.state.context.watch) == 0)

    def test_attempts_are_listed(self, http: httpx.Client, api: Served) -> None:
        job = submitted(http)
        api.sql(
            "insert into attempts (job_id, project_id, number, owner, account, region, model, request_hash)"
            " select id, project_id, 1, 'o', 'a', 'cn-beijing', model, '' from jobs"
        )

        page = http.get(job["urls"]["attempts"]).json()

        assert [(attempt["number"], attempt["outcome"]) for attempt in page["data"]] == [(1, "sent")]


class TestOutputs:
    @pytest.fixture
    def stored(self, http: httpx.Client, api: Served) -> dict[str, Any]:
        """A job with one output in the bucket."""
        job = submitted(http)
        bucket = Bucket(api.app.state.context.settings)
        put = bucket.put_stream(f"p/{job['id']}/0-video.mp4", [b"a clip"], "video/mp4", Expected())
        api.sql(
            "insert into outputs (job_id, n, project_id, role, key, content_type, bytes, sha256, crc64)"
            " select id, 0, project_id, 'video', :key, 'video/mp4', 6, :sha256, :crc64 from jobs",
            key=put.key,
            sha256=put.sha256,
            crc64=put.crc64,
        )
        shown: dict[str, Any] = http.get(job["urls"]["self"]).json()
        return shown

    def test_an_output_is_a_redirect_to_a_link_of_five_minutes(
        self, http: httpx.Client, stored: dict[str, Any]
    ) -> None:
        output = stored["outputs"][0]

        answer = http.get(output["url"])
        shown = httpx.get(answer.headers["location"])
        saved = httpx.get(http.get(output["url"], params={"download": 1}).headers["location"])

        assert answer.status_code == 302
        assert answer.headers["cache-control"] == "no-store"
        assert "X-Amz-Expires=300" in answer.headers["location"]
        assert (shown.content, shown.headers["content-type"]) == (b"a clip", "video/mp4")
        assert "content-disposition" not in shown.headers
        assert f"{stored['id']}-0-video.mp4" in saved.headers["content-disposition"]
        assert http.get(f"/v1/jobs/{stored['id']}/outputs/1").status_code == 404

    def test_the_client_downloads_it(self, http: httpx.Client, api: Served, stored: dict[str, Any]) -> None:
        target = io.BytesIO()

        with Client(api.url, http.headers["authorization"].split()[1]) as client:
            digest = client.download(stored["id"], 0, target)

        assert target.getvalue() == b"a clip"
        assert digest == stored["outputs"][0]["sha256"] == sha256(b"a clip").hexdigest()


class TestCanceling:
    def test_the_answer_says_what_became_of_it(self, http: httpx.Client, api: Served) -> None:
        cases: list[tuple[list[State], str]] = [
            ([], "canceled"),
            ([State.HELD], "canceled"),
            ([State.HELD, State.RUNNING], "requested"),
            ([State.HELD, State.RUNNING, State.COPYING], "too_late"),
            ([State.FAILED], "already_finished"),
        ]
        for states, outcome in cases:
            job = submitted(http)
            moved(api, job["id"], *states)

            answer = http.post(job["urls"]["cancel"])

            assert answer.status_code == 200
            assert answer.json()["outcome"] == outcome
            assert answer.json()["job"] == http.get(job["urls"]["self"]).json()


class TestParts:
    @pytest.fixture
    def parent(self, http: httpx.Client, api: Served) -> dict[str, Any]:
        """A job with five parts in two rounds: two succeeded, one failed, two are on their way."""
        job = submitted(http)
        api.sql("update jobs set mode = 'parent', state = 'gathering', round = 2, run_at = null")
        api.sql(
            "insert into jobs (project_id, parent_id, round, place, kind, model, input, state, finished_at, run_at,"
            " error)"
            " select project_id, id, part.round, part.place, kind, model, input, part.state,"
            " case when part.state <> 'queued' then now() end, case when part.state = 'queued' then now() end,"
            " case when part.state = 'failed' then jsonb_build_object('message', 'no') end"
            " from jobs, (values (2, 0, 'queued'), (1, 0, 'succeeded'), (1, 2, 'succeeded'), (1, 1, 'failed'),"
            " (2, 1, 'queued')) as part (round, place, state)"
        )
        shown: dict[str, Any] = http.get(job["urls"]["self"]).json()
        return shown

    def test_a_job_says_how_its_parts_stand(self, http: httpx.Client, parent: dict[str, Any]) -> None:
        found = {"total": 5, "unfinished": 2, "succeeded": 2, "failed": 1, "canceled": 0, "expired": 0}

        assert (parent["children"], parent["round"], parent["place"]) == (found, 2, None)
        assert parent["waiting_on"]["code"] == "children"
        assert parent["waiting_on"]["detail"] == "2 of 5 parts are made; 1 failed"
        assert submitted(http)["children"] is None

    def test_a_job_that_is_not_divided_yet_says_so(self, http: httpx.Client, api: Served) -> None:
        job = submitted(http)
        api.sql("update jobs set mode = 'parent'")

        shown = http.get(job["urls"]["self"]).json()

        assert shown["waiting_on"]["code"] == "parts"
        assert shown["children"]["total"] == 0

    def test_parts_are_listed_in_their_order_and_only_there(self, http: httpx.Client, parent: dict[str, Any]) -> None:
        def places(answer: httpx.Response) -> list[tuple[int, int]]:
            return [(part["round"], part["place"]) for part in answer.json()["data"]]

        url = parent["urls"]["children"]
        first = http.get(url, params={"limit": 3})
        rest = http.get(url, params={"limit": 3, "cursor": first.json()["next_cursor"]})
        failed = http.get(url, params={"state": "failed,expired"})

        assert places(first) + places(rest) == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
        assert (first.json()["has_more"], rest.json()["has_more"]) == (True, False)
        assert places(failed) == [(1, 1)]
        assert {part["parent_id"] for part in rest.json()["data"]} == {parent["id"]}
        assert ids(http.get("/v1/jobs")) == [parent["id"]]
        assert http.get(f"/v1/jobs/{rest.json()['data'][0]['id']}/children").json()["data"] == []

    def test_a_wrong_place_or_filter_is_named(self, http: httpx.Client, parent: dict[str, Any]) -> None:
        assert faults(http.get(parent["urls"]["children"], params={"cursor": "x", "state": "done", "statee": "x"})) == {
            "/query/cursor": "not_allowed",
            "/query/state/0": "not_allowed",
            "/query/statee": "unknown_field",
        }

    def test_a_page_cuts_what_is_long_and_one_job_shows_all(self, http: httpx.Client, api: Served) -> None:
        job = submitted(http)
        api.sql(
            "update jobs set input = jsonb_build_object('prompt', repeat('x', 100000)),"
            " result = jsonb_build_object('content', repeat('y', 100000))"
        )

        listed = http.get("/v1/jobs").json()["data"][0]
        shown = http.get(job["urls"]["self"]).json()

        assert (listed["input"]["prompt"][-2:], len(listed["input"]["prompt"])) == ("x…", 1001)
        assert (listed["result"]["content"][-2:], len(listed["result"]["content"])) == ("y…", 1001)
        assert len(shown["input"]["prompt"]) == len(shown["result"]["content"]) == 100_000


class TestRetrying:
    def test_a_job_that_failed_is_made_again(self, http: httpx.Client, api: Served) -> None:
        job = submitted(http)
        moved(api, job["id"], State.FAILED)

        answer = http.post(job["urls"]["retry"])

        assert (answer.status_code, answer.json()["state"], answer.json()["error"]) == (200, "queued", None)
        assert [event["to"] for event in http.get(job["urls"]["events"]).json()["data"]] == [
            "queued",
            "failed",
            "queued",
        ]

    def test_what_cannot_be_made_again_is_a_conflict_that_says_why(self, http: httpx.Client, api: Served) -> None:
        queued, open_call = submitted(http), submitted(http)
        moved(api, open_call["id"], State.FAILED)
        api.sql(
            "insert into attempts (job_id, project_id, number, owner, account, region, model, request_hash)"
            " select id, project_id, 1, 'o', 'a', 'cn-beijing', model, '' from jobs where id = :id",
            id=open_call["id"],
        )

        refused = [http.post(job["urls"]["retry"]) for job in (queued, open_call)]

        assert [(answer.status_code, answer.json()["code"]) for answer in refused] == [
            (409, "not_retryable"),
            (409, "attempt_open"),
        ]


class TestKeys:
    def test_a_revoked_key_gets_the_answer_of_an_unknown_one(self, api: Served) -> None:
        plain = api.key("spring")
        with api.engine.begin() as connection:
            revoked = keys.revoke(connection, plain[:14])

        answers = [api.http(key).get("/v1/jobs") for key in (plain, "noria_" + "x" * 43, "sk-else", None)]

        assert revoked.revoked_at is not None
        assert {answer.status_code for answer in answers} == {401}
        assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}
        assert len({re.sub(answer.headers["x-request-id"], "", answer.text) for answer in answers}) == 1

    def test_a_key_is_looked_up_once_in_a_while_and_a_revoked_one_stops_then(
        self, api: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain, http = (key := api.key("spring")), api.http(key)
        monkeypatch.setattr(callers, "REMEMBERED", 3600.0)
        with statements(api) as looked_up:
            answers = [http.get("/v1/models").status_code for _ in range(5)]
        with api.engine.begin() as connection:
            keys.revoke(connection, plain[:14])
        answers.append(http.get("/v1/models").status_code)
        monkeypatch.setattr(callers, "REMEMBERED", 0.0)
        answers.append(http.get("/v1/models").status_code)
        monkeypatch.setattr(callers, "REMEMBERED", 3600.0)
        answers.append(http.get("/v1/models").status_code)

        assert answers == [200] * 6 + [401] * 2
        assert sum("api_keys.hash" in one for one in looked_up) == 1

    def test_a_new_key_works_at_once_and_what_an_operators_key_acts_for_is_told_apart(self, api: Served) -> None:
        api.key("spring")
        unknown, http = "noria_" + "x" * 43, api.http(api.key())

        before = api.http(unknown).get("/v1/models").status_code
        api.sql("update api_keys set hash = :hash where project_id is not null", hash=keys.digest(unknown))
        after = api.http(unknown).get("/v1/models").status_code
        named = [
            http.get("/v1/jobs", headers={"noria-project": name}).status_code for name in ("spring", "x", "spring")
        ]

        assert (before, after, named) == (401, 200, [200, 404, 200])
        assert http.get("/v1/jobs").json()["code"] == "project_required"

    def test_a_key_works_until_its_time_has_come(self, api: Served) -> None:
        with api.engine.begin() as connection:
            project = keys.create_project(connection, "spring")
            now = connection.exec_driver_sql("select now()").scalar_one()
            _, later = keys.new_key(connection, project, expires_at=now + timedelta(hours=1))
            _, past = keys.new_key(connection, project, expires_at=now)

        assert api.http(later).get("/v1/jobs").status_code == 200
        assert api.http(past).get("/v1/jobs").status_code == 401

    def test_use_is_noted_once_a_minute_and_only_the_hash_is_kept(self, api: Served) -> None:
        plain = api.key("spring")
        http = api.http(plain)

        http.get("/v1/jobs")
        first = api.sql("select last_used_at from api_keys")[0]["last_used_at"]
        http.get("/v1/jobs")
        second = api.sql("select last_used_at from api_keys")[0]["last_used_at"]
        api.sql("update api_keys set last_used_at = last_used_at - interval '61 s'")
        api.app.state.context.callers.forget()
        http.get("/v1/jobs")
        third = api.sql("select last_used_at from api_keys")[0]["last_used_at"]

        assert first == second < third
        kept = api.sql("select * from api_keys")[0]
        assert kept["hash"] == sha256(plain.encode()).digest()
        assert plain not in str(dict(kept))

    def test_projects_and_keys_are_made_changed_and_listed(self, api: Served) -> None:
        with api.engine.begin() as connection:
            spring = keys.create_project(connection, "spring")
            made, plain = keys.new_key(connection, spring, "ci")
            operators, _ = keys.new_key(connection, None)

            assert re.fullmatch(r"noria_[A-Za-z0-9_-]{43}", plain)
            assert plain.startswith(made.prefix)
            assert [key.id for key in keys.keys(connection, spring)] == [made.id]
            assert {key.id for key in keys.keys(connection)} == {made.id, operators.id}
            assert keys.project(connection, "spring").id == spring.id
            assert [project.name for project in keys.projects(connection)] == ["spring"]
            changed = keys.set_project(connection, "spring", weight=3, time_zone="Europe/Berlin")
            assert (changed.weight, changed.time_zone) == (3, "Europe/Berlin")
            assert keys.rotate_secret(connection, "spring").webhook_secret != spring.webhook_secret
            assert keys.revoke(connection, str(made.id)).revoked_at == keys.revoke(connection, made.prefix).revoked_at
            with pytest.raises(Conflict):
                keys.create_project(connection, "spring")
            with pytest.raises(NotFound):
                keys.project(connection, "Spring\0")
            with pytest.raises(NotFound):
                keys.revoke(connection, "noria_nobody12")
            with pytest.raises(InvalidInput) as refused:
                keys.create_project(connection, "-", weight=0, time_zone="Mars/Olympus")

        assert [fault.pointer for fault in refused.value.faults] == ["/name", "/weight", "/time_zone"]


class TestHealth:
    def test_everything_there_is_ready(self, api: Served) -> None:
        with api.http(None) as http:
            assert http.get("/healthz").json() == {"status": "ok", "catalog": catalog.load().digest}
            answer = http.get("/readyz")

        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] == "ready"
        assert set(answer.json()["checks"]) == {"database", "clock", "migrations", "broker", "bucket"}

    @pytest.mark.parametrize(("off", "how"), [(3600, "3600 s ahead of"), (-90, "90 s behind")])
    def test_a_host_whose_clock_is_off_says_so_and_goes_on(self, api: Served, off: int, how: str) -> None:
        with time_machine.travel(datetime.now(UTC) + timedelta(seconds=off), tick=True):
            answer = api.http(None).get("/readyz")

        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert answer.json()["checks"]["clock"]["why"] == f"this host's clock is {how} the database's: run NTP"

    def test_without_the_broker_and_the_bucket_it_is_degraded_and_does_not_wait_for_them(
        self, environment: dict[str, str]
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            hanging = {
                "NORIA_BROKER_URL": f"redis://127.0.0.1:{deaf.getsockname()[1]}/0",
                "NORIA_S3_ENDPOINT_URL": f"http://127.0.0.1:{deaf.getsockname()[1]}",
            }
            with served(environment | hanging) as api, api.http(None) as http:
                began = time.monotonic()
                answer = http.get("/readyz")
                took = time.monotonic() - began

        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert not answer.json()["checks"]["broker"]["ok"]
        assert not answer.json()["checks"]["bucket"]["ok"]
        assert took < 4.0  # a second, on a machine that does nothing else

    def test_without_the_database_or_its_migrations_it_is_not_ready(
        self, environment: dict[str, str], api: Served
    ) -> None:
        api.sql("update alembic_version set version_num = '0001'")
        behind = api.http(None).get("/readyz")
        with served(environment | {"NORIA_DATABASE_URL": "postgresql+psycopg://a:b@127.0.0.1:9/c"}) as other:
            away = other.http(None).get("/readyz")

        assert (behind.status_code, behind.json()["status"]) == (503, "unready")
        assert "alembic upgrade head" in behind.json()["checks"]["migrations"]["why"]
        assert away.status_code == 503
        assert away.json()["checks"]["database"] == {"ok": False, "why": "OperationalError"}

    def test_the_schema_of_a_later_release_serves_this_one_too(self, environment: dict[str, str], api: Served) -> None:
        api.sql("update alembic_version set version_num = 'later'")

        ready = api.http(None).get("/readyz")
        migrating = (sys.executable, "-m", "migrations")
        done = subprocess.run(migrating, env=os.environ | environment, capture_output=True, text=True)

        assert ready.status_code == 200
        assert (done.returncode, "nothing was done" in done.stdout) == (0, True), done.stderr
        assert api.sql("select version_num from alembic_version") == [{"version_num": "later"}]


class TestTheFrame:
    def test_a_request_has_one_line_in_the_log_and_nothing_of_its_content(self, http: httpx.Client) -> None:
        job = submitted(http)

        with capture_logs() as lines:
            answer = http.get(f"/v1/jobs/{job['id']}?canary=1", headers={"x-request-id": "trace-1234"})

        line = next(line for line in lines if line["event"] == "request")
        assert answer.headers["x-request-id"] == line["request"] == "trace-1234"
        assert (line["method"], line["route"], line["status"]) == ("GET", "/v1/jobs/{job_id}", 200)
        assert line["project"] == "spring"
        assert "canary" not in str(lines)

    def test_a_client_that_goes_away_in_the_middle_is_no_failure(self, http: httpx.Client, api: Served) -> None:
        with capture_logs() as lines:
            with socket.create_connection(("127.0.0.1", http.base_url.port)) as half:
                head = f"POST /v1/jobs HTTP/1.1\r\nhost: x\r\nauthorization: {http.headers['authorization']}\r\n"
                half.sendall(f"{head}content-type: application/json\r\ncontent-length: 100\r\n\r\n{{".encode())
            line = eventually(lambda: next((line for line in lines if line["event"] == "request"), None))

        assert line["status"] is None
        assert [line["event"] for line in lines] == ["request"]
        assert api.sql("select id from jobs") == []

    def test_a_request_id_that_could_forge_a_line_is_replaced(self, http: httpx.Client) -> None:
        answer = http.get("/v1/models?kind=none", headers={"x-request-id": 'a" b'})

        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])

    def test_answers_are_not_sniffed_and_not_kept(self, http: httpx.Client) -> None:
        for path in ("/v1/jobs", "/v1/models?kind=none", "/v1/nowhere"):
            headers = http.get(path).headers
            assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")

    def test_the_module_needs_no_settings_to_be_imported(self) -> None:
        import api.app

        with pytest.raises(AttributeError):
            api.app.nothing  # noqa: B018


class TestTheClient:
    @pytest.fixture
    def client(self, api: Served) -> Iterator[Client]:
        with Client(api.url, api.key("spring")) as made:
            yield made

    def test_it_goes_through_the_life_of_a_job(self, client: Client, api: Served) -> None:
        assert client.dry_run(CLIP).cost.as_json() == {"currency": "CNY", "estimated": "1.50"}
        job = client.submit(CLIP | {"metadata": {"sku": "A17"}}, "k1")

        assert client.submit(CLIP | {"metadata": {"sku": "A17"}}, "k1").id == job.id
        assert client.job(job.id).id == job.id
        assert [found.id for found in client.jobs(metadata={"sku": "A17"}, limit=1)] == [job.id]
        assert client.attempts(job.id) == []
        assert client.cancel(job.id).outcome == "canceled"
        assert [event.type for event in client.events(job.id)] == ["job.queued", "job.canceled"]
        assert {model.id for model in client.models("text-to-video")} >= {CLIP["model"]}
        assert client.model("wan2.5-t2v-plus").id == CLIP["model"]

    def test_it_fetches_every_page(self, client: Client) -> None:
        made = [client.submit(CLIP).id for _ in range(5)]

        assert [job.id for job in client.jobs(limit=2)] == made[::-1]

    def test_it_raises_the_problem(self, client: Client) -> None:
        with pytest.raises(ApiError) as refused:
            client.submit(CLIP | {"x": 1})

        assert (refused.value.status, refused.value.code) == (422, "invalid_input")
        assert refused.value.problem["errors"][0]["pointer"] == "/x"

    def test_it_follows_a_job_to_its_end_across_a_lost_stream(self, client: Client, api: Served) -> None:
        job = client.submit(CLIP)
        seen = []

        for event in client.follow(job.id):
            seen.append(event.to)
            if event.to == "queued":
                moved(api, str(job.id), State.HELD)
            if event.to == "held":
                # what a network does: every connection of this client is cut
                client._transport._http._transport._pool.close()  # type: ignore[attr-defined]
                moved(api, str(job.id), State.FAILED)

        assert seen == ["queued", "held", "failed"]


def test_faults_are_sifted_in_time_that_grows_with_their_number_alone() -> None:
    """A hundredth of a second; each compared with each took 4 s."""
    of_form = [Fault(f"/a{n}", "unknown_field", "") for n in range(5_000)]
    of_catalog = [Fault(f"/input/b{n}", "unknown_field", "") for n in range(5_000)]

    began = time.thread_time()
    left = submissions._unsaid([*of_catalog, Fault("/a1/x", "", ""), Fault("/a1", "", "")], of_form)

    assert time.thread_time() - began < 1
    assert left == of_catalog


def test_the_engines_statements_are_bounded(environment: dict[str, str]) -> None:
    """A query that hangs gives its connection back."""
    engine = make_engine(settings_of(environment), threads=1)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("show statement_timeout").scalar_one() == "15s"
    engine.dispose()


@pytest.mark.usefixtures("written")  # logging is as it was afterwards
def test_uvicorns_own_lines_go_through_our_formatter(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import api.app

    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert api.app.app is api.app.app
    assert not logging.getLogger("uvicorn.access").isEnabledFor(logging.INFO)
