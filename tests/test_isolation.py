"""Two tenants, every route: what is one's does not exist for the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from serving import CLIP, Served, eventually, served

from api import scopes
from worker.keys import Scope
from worker.kinds import KINDS

# Every route of the API and what of a job it needs in its address; a new route has to be added here.
OF_A_JOB = {
    ("GET", "/v1/jobs/{job_id}"),
    ("GET", "/v1/jobs/{job_id}/events"),
    ("GET", "/v1/jobs/{job_id}/attempts"),
    ("GET", "/v1/jobs/{job_id}/outputs/{n}"),
    ("GET", "/v1/jobs/{job_id}/outputs/{n}/poster"),
    ("GET", "/v1/jobs/{job_id}/children"),
    ("GET", "/v1/jobs/{job_id}/takes"),
    ("POST", "/v1/jobs/{job_id}/cancel"),
    ("POST", "/v1/jobs/{job_id}/retry"),
}
# of a job that awaits a review
OF_A_REVIEW = {("POST", "/v1/jobs/{job_id}/approve"), ("POST", "/v1/jobs/{job_id}/reject")}
OF_A_FILE = {("GET", "/v1/files/{file_id}"), ("DELETE", "/v1/files/{file_id}")}
OF_A_SCHEDULE = {
    ("GET", "/v1/schedules/{schedule_id}"),
    ("PATCH", "/v1/schedules/{schedule_id}"),
    ("DELETE", "/v1/schedules/{schedule_id}"),
    ("POST", "/v1/schedules/{schedule_id}/pause"),
    ("POST", "/v1/schedules/{schedule_id}/resume"),
    ("POST", "/v1/schedules/{schedule_id}/run"),
    ("GET", "/v1/schedules/{schedule_id}/runs"),
}
OF_A_BATCH = {
    ("GET", "/v1/batches/{batch_id}"),
    *(("GET", f"/v1/batches/{{batch_id}}/{what}") for what in ("items", "report.csv", "results.jsonl", "errors.jsonl")),
    ("POST", "/v1/batches/{batch_id}/commit"),
    ("DELETE", "/v1/batches/{batch_id}"),
    *(("POST", f"/v1/batches/{{batch_id}}/{act}") for act in ("pause", "resume", "cancel", "retry-failed")),
}
OF_A_BUDGET = {("PATCH", "/v1/budgets/{budget_id}"), ("DELETE", "/v1/budgets/{budget_id}")}
OF_THE_MONEY = {("GET", "/v1/budgets"), ("POST", "/v1/budgets"), ("GET", "/v1/ledger")}
OF_WHOEVER_PAYS = {("GET", "/v1/usage")}
OF_AN_ENDPOINT = {
    ("GET", "/v1/webhook-endpoints/{endpoint_id}"),
    ("PATCH", "/v1/webhook-endpoints/{endpoint_id}"),
    ("DELETE", "/v1/webhook-endpoints/{endpoint_id}"),
    ("GET", "/v1/webhook-endpoints/{endpoint_id}/deliveries"),
    *(("POST", f"/v1/webhook-endpoints/{{endpoint_id}}/{act}") for act in ("rotate", "test", "redeliver")),
}
OF_A_KEY = {("POST", "/v1/keys/{key_id}/rotate"), ("DELETE", "/v1/keys/{key_id}")}
OF_MANY = {("POST", "/v1/jobs/bulk")}
OF_AN_OPERATOR = {("GET", "/v1/jobs/{job_id}/candidates"), ("POST", "/v1/jobs/{job_id}/resolve")}
OF_A_PROJECT = {
    (method, path)
    for method in ("GET", "POST")
    for path in ("/v1/jobs", "/v1/files", "/v1/schedules", "/v1/batches", "/v1/keys", "/v1/webhook-endpoints")
} | {("GET", "/v1/events"), ("GET", "/v1/project")}
OF_EVERYBODY = {("GET", "/v1/models"), ("GET", "/v1/models/{name}"), ("GET", "/v1/limits")}
WITH_A_KEY = OF_A_JOB | OF_A_REVIEW | OF_A_BATCH | OF_MANY | OF_A_FILE | OF_A_SCHEDULE | OF_A_KEY | OF_AN_OPERATOR
WITH_A_KEY |= OF_AN_ENDPOINT | OF_A_PROJECT | OF_A_BUDGET | OF_THE_MONEY | OF_EVERYBODY | OF_WHOEVER_PAYS
OF_THE_CONSOLE = {("POST", "/console/link")}  # not described; tests/test_console.py has its keys and scopes
OPEN = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/docs"), ("GET", "/openapi.json")}

# The scope that each route takes: what looks, what makes and changes, and what is for a project's admins.
OF_ADMINS = OF_A_KEY | OF_A_BUDGET | {("GET", "/v1/keys"), ("POST", "/v1/keys"), ("POST", "/v1/budgets")}
OF_ADMINS |= {route for route in OF_AN_ENDPOINT if route[0] != "GET"} | {("POST", "/v1/webhook-endpoints")}
OF_READERS = {route for route in WITH_A_KEY - OF_ADMINS if route[0] == "GET"} | OF_AN_OPERATOR

NIGHTLY = {"name": "nightly", "cron": "0 2 * * *", "template": CLIP}

ITEMS = {"items": [CLIP]}

BUDGET = {"period": "day", "limit": "700.00"}
ENDPOINT = {"url": "http://127.0.0.1:9/hooks", "events": ["job.*"]}  # nobody listens there

BODIES: dict[str, Any] = {
    "/v1/jobs": CLIP,
    "/v1/jobs/bulk": {"action": "cancel", "filter": {"custom_id": "row-17"}},
    "/v1/jobs/{job_id}/resolve": {"action": "requeue"},
    "/v1/jobs/{job_id}/reject": {"comment": "no", "reroll": {}},
    "/v1/schedules": NIGHTLY,
    "/v1/batches": ITEMS,
    "/v1/budgets": BUDGET,
    "/v1/budgets/{budget_id}": {"limit": "9.00"},
    "/v1/keys": {"name": "ci"},
    "/v1/schedules/{schedule_id}": {"overlap": "queue"},
    "/v1/webhook-endpoints": ENDPOINT | {"url": "http://127.0.0.1:9/others"},
    "/v1/webhook-endpoints/{endpoint_id}": {"description": "ours"},
    "/v1/webhook-endpoints/{endpoint_id}/redeliver": {"since": "2026-01-01T00:00:00Z"},
}

FILE = {"file": ("notes.txt", b"What spring has to say.")}


@dataclass
class Tenants:
    """Spring has a job, a file, a schedule, a draft, a budget, an endpoint and another key; summer a key."""

    api: Served
    job: dict[str, Any]
    file: dict[str, Any]
    schedule: dict[str, Any]
    batch: dict[str, Any]
    budget: dict[str, Any]
    endpoint: dict[str, Any]
    key: dict[str, Any]
    spring: httpx.Client
    summer: httpx.Client
    operator: httpx.Client

    def ask(self, who: httpx.Client, route: tuple[str, str], **headers: str) -> httpx.Response:
        """One call of a route, about spring's job or file where it is about one."""
        method, template = route
        its = {
            "job_id": self.job["id"],
            "batch_id": self.batch["id"],
            "file_id": self.file["id"],
            "schedule_id": self.schedule["id"],
            "budget_id": self.budget["id"],
            "endpoint_id": self.endpoint["id"],
            "key_id": self.key["id"],
        }
        path = template.format(**its, n=0, name=CLIP["model"])
        given = FILE if route == ("POST", "/v1/files") else None
        return who.request(
            method, path, json=BODIES.get(template) if method != "GET" else None, files=given, headers=headers
        )


@pytest.fixture
def tenants(environment: dict[str, str]) -> Iterator[Tenants]:
    with served(environment) as api:
        spring, summer, operator = (api.http(api.key(name)) for name in ("spring", "summer", None))
        endpoint = spring.post("/v1/webhook-endpoints", json=ENDPOINT).json()
        job = spring.post("/v1/jobs", json=CLIP | {"metadata": {"sku": "A17"}, "custom_id": "row-17"}).json()
        api.sql(
            "insert into outputs (job_id, n, project_id, role, key, content_type, bytes, sha256, crc64, poster)"
            " select id, 0, project_id, 'video', 'spring/0.mp4', 'video/mp4', 6, '', '', 'made' from jobs"
        )
        file = spring.post("/v1/files", files=FILE).json()
        schedule = spring.post("/v1/schedules", json=NIGHTLY).json()
        batch = spring.post("/v1/batches", json=ITEMS).json()
        budget = spring.post("/v1/budgets", json=BUDGET).json()
        key = spring.post("/v1/keys", json={"name": "ci"}).json()
        yield Tenants(api, job, file, schedule, batch, budget, endpoint, key, spring, summer, operator)


def test_every_route_is_in_the_matrix(tenants: Tenants) -> None:
    described = tenants.api.app.openapi()["paths"]
    routes = {(method.upper(), path) for path, methods in described.items() for method in methods}

    assert routes == (WITH_A_KEY | OPEN) - {("GET", "/docs"), ("GET", "/openapi.json")}
    hidden = {route.path for route in tenants.api.app.routes if isinstance(route, APIRoute)} - set(described)
    assert hidden == {"/docs", "/docs/oauth2-redirect"}


def test_a_projects_key_decides_nothing_and_learns_nothing_by_asking(tenants: Tenants) -> None:
    for route in sorted(OF_AN_OPERATOR):
        for who in (tenants.spring, tenants.summer):
            refused = tenants.ask(who, route)

            assert (refused.status_code, refused.json()["code"]) == (403, "operator_required")


def test_anothers_job_is_not_found(tenants: Tenants) -> None:
    for route in sorted(OF_A_JOB):
        before = tenants.api.sql("select * from jobs")

        own = tenants.ask(tenants.spring, route)
        tenants.api.sql("update jobs set state = 'queued', finished_at = null, run_at = now(), sequence = 1")
        other = tenants.ask(tenants.summer, route)
        streamed = tenants.ask(tenants.summer, route, accept="text/event-stream")

        assert own.status_code in (200, 302) or own.json()["code"] == "not_retryable"
        assert (other.status_code, other.json()["code"]) == (404, "not_found"), route
        assert streamed.status_code == 404
        assert tenants.api.sql("select state from jobs") == [{"state": before[0]["state"]}]


def test_of_a_batch_nothing_is_shown_that_is_anothers(tenants: Tenants) -> None:
    tenants.spring.post(f"/v1/batches/{tenants.batch['id']}/commit")
    routes = [route for route in sorted(OF_A_BATCH) if route[1].count("/") == 4 and route[0] == "GET"]
    own = [tenants.ask(tenants.spring, route).text for route in routes]
    tenants.api.sql("update jobs set project_id = (select id from projects where name = 'summer')")

    others = [tenants.ask(tenants.spring, route).text for route in routes]

    assert [CLIP["model"] in text for text in own] == [False, True, True, False]  # errors, items, report, results
    assert [CLIP["model"] in text for text in others] == [False] * 4


def test_anothers_job_is_not_reviewed(tenants: Tenants) -> None:
    waits = "update jobs set state = 'awaiting_review', review = 'required', finished_at = null, run_at = null"
    for route in sorted(OF_A_REVIEW):
        tenants.api.sql(waits)

        other = tenants.ask(tenants.summer, route)
        unnamed = tenants.ask(tenants.operator, route)
        state = tenants.api.sql("select distinct state from jobs")
        own = tenants.ask(tenants.operator, route, **{"noria-project": "spring"})

        assert (other.status_code, other.json()["code"]) == (404, "not_found"), route
        assert (unnamed.status_code, unnamed.json()["code"]) == (400, "project_required")
        assert state == [{"state": "awaiting_review"}]
        assert own.status_code == 200, own.text


def test_anothers_batch_is_not_found_and_stays_as_it_is(tenants: Tenants) -> None:
    tenants.spring.post(f"/v1/batches/{tenants.batch['id']}/commit")
    for route in sorted(OF_A_BATCH):
        other = tenants.ask(tenants.summer, route)

        assert (other.status_code, other.json()["code"]) == (404, "not_found"), route
    assert tenants.api.sql("select state, paused_at, canceled_at from batches") == [
        {"state": "running", "paused_at": None, "canceled_at": None}
    ]
    assert len(tenants.spring.get(f"/v1/jobs?batch={tenants.batch['id']}").json()["data"]) == 1
    assert tenants.summer.get(f"/v1/jobs?batch={tenants.batch['id']}").json()["data"] == []


def test_many_jobs_at_once_are_ones_own(tenants: Tenants) -> None:
    by_id = {"action": "cancel", "ids": [tenants.job["id"]]}
    for wanted in (
        {"custom_id": "row-17"},
        {"metadata": {"sku": "A17"}},
        {"batch": tenants.batch["id"]},
        {"state": "queued"},
    ):
        found = tenants.summer.post("/v1/jobs/bulk", json={"action": "cancel", "filter": wanted})
        assert (found.status_code, found.json()["jobs"]) == (200, 0), wanted

    assert tenants.summer.post("/v1/jobs/bulk", json=by_id).json()["outcomes"] == {"not_found": 1}
    assert tenants.spring.get(tenants.job["urls"]["self"]).json()["state"] == "queued"


def test_anothers_file_is_not_found_not_named_and_not_removed(tenants: Tenants) -> None:
    for route in sorted(OF_A_FILE):
        other = tenants.ask(tenants.summer, route)

        assert (other.status_code, other.json()["code"]) == (404, "not_found")
    clip = {"kind": "image-to-video", "model": "wan2.5-i2v-preview", "input": {"img_url": tenants.file["key"]}}
    named = tenants.summer.post("/v1/jobs", json=clip)

    assert named.json()["errors"][0]["code"] == "no_such_file"
    assert tenants.summer.get("/v1/files").json()["data"] == []
    assert tenants.spring.get(f"/v1/files/{tenants.file['id']}").json() == tenants.file


def test_anothers_schedule_is_not_found_not_run_and_not_changed(tenants: Tenants) -> None:
    for route in sorted(OF_A_SCHEDULE):
        other = tenants.ask(tenants.summer, route)

        assert (other.status_code, other.json()["code"]) == (404, "not_found"), route
    assert tenants.summer.get("/v1/schedules").json()["data"] == []
    assert tenants.spring.get("/v1/schedules").json()["data"] == [tenants.schedule]
    assert tenants.spring.get(tenants.schedule["urls"]["runs"]).json()["data"] == []
    assert tenants.spring.post(tenants.schedule["urls"]["self"] + "/run").is_success
    assert len(tenants.spring.get(f"/v1/jobs?schedule={tenants.schedule['id']}").json()["data"]) == 1
    assert tenants.summer.get(f"/v1/jobs?schedule={tenants.schedule['id']}").json()["data"] == []


def test_anothers_endpoint_is_not_found_not_called_and_not_changed(tenants: Tenants) -> None:
    for route in sorted(OF_AN_ENDPOINT):
        other = tenants.ask(tenants.summer, route)

        assert (other.status_code, other.json()["code"]) == (404, "not_found"), route
    assert tenants.summer.get("/v1/webhook-endpoints").json()["data"] == []
    (kept,) = tenants.spring.get("/v1/webhook-endpoints").json()["data"]
    assert kept == {name: value for name, value in tenants.endpoint.items() if name != "secret"}


def test_of_anothers_events_nothing_is_told_or_fed(tenants: Tenants) -> None:
    made = tenants.summer.post("/v1/webhook-endpoints", json=ENDPOINT).json()
    tenants.spring.post("/v1/jobs", json=CLIP)
    theirs = tenants.api.sql("select id from deliveries")[0]["id"]

    sent = tenants.summer.post(made["urls"]["self"] + "/redeliver", json={"ids": [str(theirs)]}).json()

    assert sent["deliveries"] == 0
    assert tenants.summer.get(made["urls"]["deliveries"]).json()["data"] == []
    assert eventually(lambda: tenants.spring.get("/v1/events").json()["data"])
    assert tenants.summer.get("/v1/events").json()["data"] == []
    with tenants.summer.stream("GET", "/v1/events", headers={"accept": "text/event-stream"}) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith(":")
        own = tenants.summer.post("/v1/jobs", json=CLIP).json()["id"]
        assert own in next(line for line in lines if line.startswith("data:"))


def test_anothers_batch_is_not_found_not_committed_and_not_deleted(tenants: Tenants) -> None:
    for route in sorted(OF_A_BATCH):
        other = tenants.ask(tenants.summer, route)

        assert (other.status_code, other.json()["code"]) == (404, "not_found"), route
    assert tenants.summer.get("/v1/batches").json()["data"] == []
    assert tenants.spring.get(f"/v1/batches/{tenants.batch['id']}").json() == tenants.batch


def test_anothers_budget_is_not_found_and_counts_for_nobody_else(tenants: Tenants) -> None:
    for route in sorted(OF_A_BUDGET):
        other = tenants.ask(tenants.summer, route)

        assert (other.status_code, other.json()["code"]) == (404, "not_found"), route
    tenants.api.sql("update budgets set micros = 0")
    assert tenants.summer.post("/v1/jobs", json=CLIP).status_code == 201
    assert tenants.spring.post("/v1/jobs", json=CLIP).status_code == 402
    assert tenants.summer.get("/v1/budgets").json()["data"] == []
    assert len(tenants.spring.get("/v1/ledger").json()["data"]) == 1
    assert [line["job_id"] for line in tenants.summer.get("/v1/ledger").json()["data"]] != [tenants.job["id"]]
    assert tenants.summer.get("/v1/ledger", params={"job": tenants.job["id"]}).json()["data"] == []


def test_equal_rows_of_two_projects_are_two_jobs(tenants: Tenants) -> None:
    own = tenants.spring.post("/v1/batches?commit=true", json=ITEMS).json()
    other = tenants.summer.post("/v1/batches?commit=true", json=ITEMS).json()

    assert (own["rows"]["made"], other["rows"]["made"]) == (1, 1)


def test_two_projects_may_have_schedules_of_one_name(tenants: Tenants) -> None:
    made = tenants.summer.post("/v1/schedules", json=NIGHTLY)

    assert made.status_code == 201
    assert made.json()["id"] != tenants.schedule["id"]


def test_lists_hold_only_ones_own(tenants: Tenants) -> None:
    for query in ("", "custom_id=row-17", "metadata.sku=A17", "q=kitten", "state=queued"):
        assert len(tenants.spring.get(f"/v1/jobs?{query}").json()["data"]) == 1
        assert tenants.summer.get(f"/v1/jobs?{query}").json()["data"] == []


def test_a_cursor_of_anothers_job_opens_nothing(tenants: Tenants) -> None:
    page = tenants.summer.get("/v1/jobs", params={"cursor": "ffffffff-ffff-7fff-bfff-ffffffffffff"})

    assert page.json()["data"] == []


def test_idempotency_keys_are_a_projects_own(tenants: Tenants) -> None:
    said = {"idempotency-key": "k1"}

    first = tenants.spring.post("/v1/jobs", json=CLIP, headers=said)
    other = tenants.summer.post("/v1/jobs", json=CLIP | {"custom_id": "x"}, headers=said)

    assert (first.status_code, other.status_code) == (201, 201)
    assert first.json()["id"] != other.json()["id"]
    assert other.json()["project"] == "summer"


def test_a_key_cannot_act_for_another_project_nor_learn_whether_it_exists(tenants: Tenants) -> None:
    there = tenants.summer.get("/v1/jobs", headers={"noria-project": "spring"})
    nowhere = tenants.summer.get("/v1/jobs", headers={"noria-project": "winter"})
    own = tenants.summer.get("/v1/jobs", headers={"noria-project": "summer"})

    assert (there.status_code, nowhere.status_code, own.status_code) == (404, 404, 200)
    assert {**there.json(), "request_id": ""} == {**nowhere.json(), "request_id": ""}


def test_without_a_key_nothing_but_health_answers(tenants: Tenants) -> None:
    tenants.api.sql("update api_keys set expires_at = now() where id = :id", id=tenants.key["id"])
    for route in sorted(WITH_A_KEY):
        with tenants.api.http(None) as nobody, tenants.api.http(tenants.key["key"]) as expired:
            assert tenants.ask(nobody, route).status_code == 401, route
            assert tenants.ask(expired, route).status_code == 401, route


@pytest.mark.parametrize("scope", Scope)
def test_each_route_takes_the_scope_that_it_names_and_no_narrower_one(tenants: Tenants, scope: Scope) -> None:
    described = tenants.api.app.openapi()["paths"]
    with tenants.api.http(tenants.api.key("summer", scope)) as summer:
        for method, path in sorted(WITH_A_KEY):
            route = (method, path)
            takes = Scope.ADMIN if route in OF_ADMINS else Scope.READ if route in OF_READERS else Scope.SUBMIT
            said = described[path][method.lower()]

            answer = tenants.ask(summer, route)

            assert said["security"] == [{"key": [takes]}], route
            assert "403" in said["responses"] or takes is Scope.READ, route
            if scope.includes(takes):
                assert answer.is_success or answer.json()["code"] in {"not_found", "operator_required"}, route
            else:
                assert (answer.status_code, answer.json()["code"]) == (403, "wrong_scope"), route
                assert f"the scope {takes};" in answer.json()["detail"]


def test_no_scope_is_kept_of_a_route_that_is_gone() -> None:
    assert set(scopes._OTHERS) <= WITH_A_KEY | OF_THE_CONSOLE
    assert set(scopes._SET_UP) <= {path for _, path in WITH_A_KEY}


def test_what_is_added_below_a_projects_settings_is_for_its_admins() -> None:
    assert {scopes.needed(method, "/v1/keys/{key_id}/new") for method in ("GET", "PUT")} == {Scope.ADMIN}


def test_anothers_key_is_not_found_not_listed_and_still_works(tenants: Tenants) -> None:
    for route in sorted(OF_A_KEY):
        other = tenants.ask(tenants.summer, route)

        assert (other.status_code, other.json()["code"]) == (404, "not_found"), route
    assert tenants.key["id"] not in tenants.summer.get("/v1/keys").text
    own = tenants.spring.get("/v1/keys").json()["data"]
    assert own[0] == {name: value for name, value in tenants.key.items() if name != "key"}
    assert len(own) == 2


def test_health_and_the_description_answer_everybody(tenants: Tenants) -> None:
    for route in sorted(OPEN):
        with tenants.api.http(None) as nobody:
            assert tenants.ask(nobody, route).status_code == 200, route


def test_an_operator_acts_for_the_project_that_it_names(tenants: Tenants) -> None:
    named_by_id = OF_A_JOB | OF_A_BATCH | OF_A_FILE | OF_A_SCHEDULE | OF_A_BUDGET | OF_A_KEY | OF_AN_ENDPOINT
    for route in sorted(named_by_id | OF_MANY | OF_A_PROJECT | OF_THE_MONEY, key=_gently):
        unnamed = tenants.ask(tenants.operator, route)
        elsewhere = tenants.ask(tenants.operator, route, **{"noria-project": "summer"})
        named = tenants.ask(tenants.operator, route, **{"noria-project": "spring"})

        assert (unnamed.status_code, unnamed.json()["code"]) == (400, "project_required")
        assert elsewhere.status_code == 404 if route in named_by_id else elsewhere.is_success
        # of a draft, or of one that was committed just before
        refused = () if named.is_success or named.status_code == 302 else (named.json()["code"],)
        assert set(refused) <= {"is_draft", "not_a_draft"}, route


def _gently(route: tuple[str, str]) -> tuple[int, str]:
    """What removes and what changes comes last."""
    return ("GET", "POST", "PATCH", "DELETE").index(route[0]), route[1]


def test_an_operator_reads_the_catalog_without_naming_one(tenants: Tenants) -> None:
    for route in sorted(OF_EVERYBODY):
        assert tenants.ask(tenants.operator, route).status_code == 200


def test_outputs_events_and_attempts_of_anothers_job_never_come_by_number(tenants: Tenants) -> None:
    """Numbers that a tenant can guess (outputs, sequences) lead nowhere without the job."""
    for n in range(3):
        assert tenants.summer.get(f"/v1/jobs/{tenants.job['id']}/outputs/{n}").status_code == 404


def test_the_catalog_says_nothing_of_tenants(tenants: Tenants) -> None:
    for kind in KINDS:
        assert "spring" not in tenants.summer.get("/v1/models", params={"kind": kind}).text
