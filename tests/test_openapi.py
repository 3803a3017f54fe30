"""The description and the API say the same: each answer has the form, the status and the type that are described."""

from __future__ import annotations

import copy
import json
import re
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from pydantic import BaseModel
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core import NOT_SET
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import CLIP, PATIENCE, Served

from api import answers, app, description, forms, openapi, problems
from api.routes import batches, budgets, bulk, catalog, endpoints, files, jobs, keys, operator, review, schedules
from worker import document
from worker.batches.document import BatchDocument
from worker.jobs import spending
from worker.kinds import OFFERED


def headers_are_described(_: object, answer: Any, case: Any) -> None:
    """Each header that a client may act on is in the description of that answer."""
    path = case.operation.path
    operation = COMMITTED["paths"][path][case.operation.method]
    described = {name.lower() for name in description.headers(operation, path, str(answer.status_code))}
    assert described >= {name for name in TOLD if name in answer.headers}, (case.operation.label, answer.status_code)


CHECKS = [
    headers_are_described,
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
TOLD = ("location", "retry-after", "idempotency-replayed", "content-disposition", "www-authenticate")
EXAMPLES = 6  # of each operation
BUDGET = {"period": "day", "limit": "700000.00"}
NIGHTLY: dict[str, Any] = {"name": "nightly", "cron": "0 2 * * *", "template": CLIP}
ANY = list(HealthCheck)
MANY: dict[str, Any] = {"action": "cancel", "filter": {"custom_id": "row-17"}, "dry_run": True}
ENDPOINT: dict[str, Any] = {"url": "http://127.0.0.1:9/hooks", "events": ["job.*"]}  # nobody listens there
PROJECT = {"Noria-Project": "spring"}
COMMITTED: dict[str, Any] = json.loads(openapi.DESCRIPTION.read_text())

Operation = schemathesis.APIOperation[Any, Any, Any, Any]
Case = schemathesis.Case[Any]


@pytest.fixture
def described(api: Served) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(api.url + "/openapi.json", timeout=PATIENCE).json()
    return found


def test_it_is_openapi_3_1_and_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    components = described["components"]["schemas"]

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from (found for name, found in value.items() if name == "$ref")
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                yield from references(item)

    found = set(references(described))
    assert described["openapi"].startswith("3.1")
    for reference in found:
        room, _, name = reference.removeprefix("#/components/").partition("/")
        assert name in described["components"][room], reference
    for name, component in components.items():
        Draft202012Validator.check_schema(component)
        assert component.get("description") or name.startswith("_"), name


def test_every_operation_is_explained_and_names_its_refusals(described: dict[str, Any]) -> None:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert operation["description"], (method, path)
            if path.startswith("/v1/"):
                assert operation["security"][0]["key"], "the scope that it takes"
                assert {"401", "422", "429", "503"} <= set(operation["responses"])
                for status, response in operation["responses"].items():
                    if status >= "400":
                        response = described["components"]["responses"][response["$ref"].rpartition("/")[2]]
                        assert list(response["content"]) == ["application/problem+json"], (path, status)
            for parameter in operation.get("parameters", []):
                assert parameter.get("description") or parameter["schema"].get("description"), parameter["name"]


def test_the_input_is_documented_for_each_kind_with_an_example(described: dict[str, Any]) -> None:
    body = described["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    components = described["components"]["schemas"]
    mapping = components["JobCreate"]["discriminator"]["mapping"]
    of_kinds = {kind: components[reference.rpartition("/")[2]]["properties"] for kind, reference in mapping.items()}

    assert components["JobCreate"]["oneOf"] == [{"$ref": reference} for reference in mapping.values()]
    assert {kind: fields["kind"]["const"] for kind, fields in of_kinds.items()} == {kind: kind for kind in OFFERED}
    assert {kind: fields["input"]["$ref"].rpartition("/")[2] for kind, fields in of_kinds.items()} == {
        kind: offered.input.__name__ for kind, offered in OFFERED.items()
    }
    assert {name: found["value"] for name, found in body["examples"].items()} == {
        kind: forms.example(kind) for kind in OFFERED
    }


def test_every_body_and_answer_has_an_example_that_its_schema_takes(described: dict[str, Any]) -> None:
    parts = described["components"]

    def bodies() -> Iterator[dict[str, Any]]:
        for _, _, operation in description.operations(described):
            yield from operation.get("requestBody", {}).get("content", {}).values()
            for response in operation["responses"].values():
                content = parts["responses"][response["$ref"].rpartition("/")[2]] if "$ref" in response else response
                yield from (body for kind, body in content.get("content", {}).items() if kind.endswith("json"))

    for body in bodies():
        named = body.get("examples", {}).values()
        values = [parts["examples"][each["$ref"].rpartition("/")[2]] if "$ref" in each else each for each in named]
        for value in [each["value"] for each in values] or [body["example"]]:
            Draft202012Validator({**body["schema"], "components": parts}).validate(value)


def test_the_committed_description_and_the_clients_documents_are_those_of_the_code() -> None:
    described = app.described()
    broken = "".join(f"\nbreaks clients: {change}" for change in openapi.breaks(COMMITTED, described))

    assert openapi.written(described) == openapi.DESCRIPTION.read_text(), f"run `make openapi`{broken}"
    assert openapi.documents(described) == openapi.DOCUMENTS.read_text(), "run `make openapi`"


def test_what_breaks_a_client_is_named_and_what_is_new_is_not() -> None:
    described = copy.deepcopy(COMMITTED)
    schemas = described["components"]["schemas"]
    assert list(openapi.breaks(COMMITTED, described)) == []

    del described["paths"]["/v1/ledger"]
    del schemas["JobDocument"]["properties"]["usage"]
    schemas["JobDocument"]["properties"]["state"]["enum"].remove("running")
    schemas["KeyCreate"]["required"] = ["name"]
    described["paths"]["/v1/new"] = {"get": {"responses": {}}}
    schemas["JobDocument"]["properties"]["new"] = {"type": "string"}
    schemas["JobDocument"]["required"].append("new")

    assert sorted(openapi.breaks(COMMITTED, described)) == [
        "GET /v1/ledger is gone",
        "JobDocument.state: 'running' is gone",
        "JobDocument.usage is gone",
        "KeyCreate.name is required",
    ]


def test_a_change_of_a_schedule_requires_nothing_and_fills_nothing_in(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    create, update = schemas["ScheduleCreate"], schemas["ScheduleUpdate"]

    assert update["properties"].keys() == create["properties"].keys()
    assert "required" not in update
    assert not [name for name, field in update["properties"].items() if "default" in field]
    assert create["properties"]["overlap"]["default"] == "skip"


def test_answers_say_what_is_described_and_nothing_else(api: Served) -> None:
    with api.http(api.key("spring")) as http:
        job = http.post("/v1/jobs", json=CLIP | {"custom_id": "row-17"}).json()
        api.sql(
            "insert into outputs (job_id, n, project_id, role, key, content_type, bytes, sha256, crc64, duration)"
            " select id, 0, project_id, 'video', 'k', 'video/mp4', 6, '', '', 5.04 from jobs"
        )
        api.sql(
            "insert into attempts (job_id, project_id, number, owner, account, region, model, request_hash)"
            " select id, project_id, 1, 'o', 'a', 'cn-beijing', model, '' from jobs"
        )
        said: dict[type[BaseModel], Any] = {
            jobs.Submitted: job,
            document.JobDocument: http.get(job["urls"]["self"]).json(),
            answers.JobList: http.get("/v1/jobs").json(),
            jobs.EventList: http.get(job["urls"]["events"]).json(),
            jobs.AttemptList: http.get(job["urls"]["attempts"]).json(),
            files.FileDocument: http.post("/v1/files", files={"file": ("a.txt", b"some words")}).json(),
            files.FileList: http.get("/v1/files").json(),
            schedules.ScheduleDocument: (schedule := http.post("/v1/schedules", json=NIGHTLY).json()),
            schedules.RunDocument: http.post(f"/v1/schedules/{schedule['id']}/run").json(),
            schedules.ScheduleList: http.get("/v1/schedules").json(),
            schedules.RunList: http.get(schedule["urls"]["runs"]).json(),
            jobs.Estimate: http.post("/v1/jobs?dry_run=true", json=CLIP).json(),
            BatchDocument: http.post("/v1/batches", json={"items": [CLIP, {}]}).json(),
            spending.BudgetDocument: http.post("/v1/budgets", json=BUDGET).json(),
            budgets.BudgetList: http.get("/v1/budgets").json(),
            budgets.LedgerList: http.get("/v1/ledger").json(),
            batches.BatchList: http.get("/v1/batches").json(),
            keys.NewKey: http.post("/v1/keys", json={"name": "ci"}).json(),
            keys.KeyList: http.get("/v1/keys").json(),
            catalog.ModelList: http.get("/v1/models").json(),
            operator.LaneList: http.get("/v1/limits").json(),
            catalog.Readiness: http.get("/readyz").json(),
            problems.ProblemDocument: http.post("/v1/jobs", json={}).json(),
            bulk.BulkDocument: http.post("/v1/jobs/bulk", json=MANY).json(),
            jobs.Cancellation: http.post(job["urls"]["cancel"]).json(),
            endpoints.EndpointSecret: (endpoint := http.post("/v1/webhook-endpoints", json=ENDPOINT).json()),
            endpoints.EndpointDocument: http.get(endpoint["urls"]["self"]).json(),
            endpoints.EndpointList: http.get("/v1/webhook-endpoints").json(),
            endpoints.TestDocument: http.post(endpoint["urls"]["self"] + "/test").json(),
            endpoints.DeliveryList: http.get(endpoint["urls"]["deliveries"]).json(),
            endpoints.Redelivery: http.post(
                endpoint["urls"]["self"] + "/redeliver", json={"status": "exhausted"}
            ).json(),
            endpoints.Feed: http.get("/v1/events").json(),
        }
        api.sql("update jobs set state = 'awaiting_review', review = 'required', run_at = null, finished_at = null")
        said[review.Rejection] = http.post(job["urls"]["self"] + "/reject", json={"comment": "no", "reroll": {}}).json()

    for form, answer in said.items():
        form.model_validate_json(json.dumps(answer))
    assert said[answers.JobList]["data"][0]["outputs"][0]["duration"] == 5.04


# what no generated request of a project's key can get an answer from: an output, a model's name, an operator's words,
# outputs that wait for a review
NEVER_ANSWERED = {
    "GET /v1/jobs/{job_id}/outputs/{n}",
    "GET /v1/jobs/{job_id}/outputs/{n}/poster",
    "GET /v1/models/{name}",
    "GET /v1/jobs/{job_id}/candidates",
    "POST /v1/jobs/{job_id}/resolve",
    "POST /v1/jobs/{job_id}/approve",
    "POST /v1/jobs/{job_id}/reject",
}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_generated_request_finds_a_fault_of_ours_or_an_answer_that_is_not_described(
    api: Served, mode: GenerationMode
) -> None:
    headers = {"authorization": f"Bearer {api.key('spring')}"}
    job = httpx.post(api.url + "/v1/jobs", json=CLIP, headers=headers).json()
    file = httpx.post(api.url + "/v1/files", files={"file": ("a.txt", b"some words")}, headers=headers).json()
    ours = {"job_id": job["id"], "file_id": file["id"]}
    items = {"items": [CLIP]}
    schema = schemathesis.openapi.from_url(api.url + "/openapi.json")
    asked: Counter[tuple[str, int]] = Counter()

    for operation in (found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)):
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
            continue
        is_begun = {"commit": str(operation.path.endswith(("/pause", "/resume", "/cancel", "/retry-failed"))).lower()}
        batch = httpx.post(api.url + "/v1/batches", params=is_begun, json=items, headers=headers).json()
        key = httpx.post(api.url + "/v1/keys", json={}, headers=headers).json()
        budget = httpx.post(api.url + "/v1/budgets", json=BUDGET, headers=headers).json()
        known = ours | {"batch_id": batch["id"], "key_id": key["id"], "budget_id": budget["id"]}
        known |= {"schedule_id": _schedule(api, headers), "endpoint_id": _endpoint(api, headers)}
        its = {name: its_id for name, its_id in known.items() if f"{{{name}}}" in operation.path} or None
        for body in _bodies(operation, mode):
            media_type = None if body is NOT_SET else "application/json"
            strategy = operation.as_strategy(
                generation_mode=mode, path_parameters=its, headers=PROJECT, body=body, media_type=media_type
            )
            _ask(api, strategy, headers, asked)
        api.sql("update budgets set removed_at = now()")  # as many as a project may have are soon made

    described = {f"{operation.ok().label}" for operation in schema.get_all_operations() if isinstance(operation, Ok)}
    if mode is GenerationMode.POSITIVE:
        answered = {label for label, status in asked if status < 400}
        assert described - answered == NEVER_ANSWERED, asked
        assert asked["POST /v1/jobs", 201]
    else:
        assert sum(count for (_, status), count in asked.items() if status == 422) > EXAMPLES, asked


def test_what_is_seldom_generated_is_answered_as_described_too(api: Served) -> None:
    """Outputs, streams, exports, uploads, reviews, and an operator's questions."""
    headers = {"authorization": f"Bearer {api.key('spring')}"}
    operators = {"authorization": f"Bearer {api.key()}"}
    with api.http(api.key("spring")) as http:
        job = http.post("/v1/jobs", json=CLIP).json()["id"]
        batch = http.post("/v1/batches?commit=true", json={"items": [CLIP]}).json()["id"]
        api.sql("update jobs set state = 'awaiting_review', review = 'required', run_at = null where id = :id", id=job)
        api.sql(
            "insert into outputs (job_id, n, project_id, role, key, content_type, bytes, sha256, crc64, poster)"
            " select id, 0, project_id, 'video', 'k', 'video/mp4', 6, '', '', 'made' from jobs where id = :id",
            id=job,
        )
        other = http.post("/v1/jobs", json=CLIP).json()["id"]
        http.post(f"/v1/jobs/{other}/cancel")
    schema = schemathesis.openapi.from_url(api.url + "/openapi.json")
    stream = {"accept": "text/event-stream"}
    file = {"file": b"kind,prompt\ntext-to-video,a kitten\n"}

    def ask(method: str, path: str, its: dict[str, Any], *statuses: int, **said: Any) -> None:
        case = schema[path][method].Case(path_parameters=its, **said)
        key = operators if path.endswith(("candidates", "resolve")) else headers
        answer = case.call(base_url=api.url, headers=key | said.get("headers", {}), allow_redirects=False)
        case.validate_response(answer, checks=[check for check in CHECKS if check is not not_a_server_error])
        assert answer.status_code in statuses, (path, answer.text)

    ask("GET", "/v1/jobs/{job_id}/outputs/{n}", {"job_id": job, "n": 0}, 302)
    ask("GET", "/v1/jobs/{job_id}/outputs/{n}/poster", {"job_id": job, "n": 0}, 302)
    ask("GET", "/v1/models/{name}", {"name": CLIP["model"]}, 200)
    ask("GET", "/v1/jobs/{job_id}/events", {"job_id": other}, 200, headers=stream)
    ask("GET", "/v1/jobs/{job_id}/events", {"job_id": other}, 204, headers=stream | {"last-event-id": "2"})
    ask("GET", "/v1/events", {}, 422, headers=stream | {"last-event-id": "yesterday"})  # other streams have no end
    for name in ("report.csv", "results.jsonl", "errors.jsonl"):
        ask("GET", f"/v1/batches/{{batch_id}}/{name}", {"batch_id": batch}, 200)
    ask("POST", "/v1/batches", {}, 201, body=file, media_type="multipart/form-data")
    ask("POST", "/v1/files", {}, 201, body={"file": b"some words"}, media_type="multipart/form-data")
    ask("POST", "/v1/jobs/{job_id}/approve", {"job_id": job}, 200, body={}, media_type="application/json")
    no = {"comment": "no"}
    ask("POST", "/v1/jobs/{job_id}/reject", {"job_id": job}, 409, body=no, media_type="application/json")
    ask("GET", "/v1/jobs/{job_id}/candidates", {"job_id": other}, 409)
    requeue = {"action": "requeue"}
    ask("POST", "/v1/jobs/{job_id}/resolve", {"job_id": other}, 409, body=requeue, media_type="application/json")


def test_no_operation_answers_whom_it_does_not_know(api: Served) -> None:
    schema = schemathesis.openapi.from_url(api.url + "/openapi.json")
    known = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    asked = [operation for operation in known if operation.path.startswith("/v1/")]
    assert len(asked) > 60

    for operation in asked:
        its = {name: 1 if name == "n" else str(uuid.uuid4()) for name in re.findall(r"{(\w+)}", operation.path)}
        for key in ({}, {"authorization": "Bearer noria_nobody"}):
            case = operation.Case(path_parameters=its)
            answer = case.call(base_url=api.url, headers=key)
            case.validate_response(answer, checks=CHECKS)
            assert answer.status_code == 401, operation.label


def _bodies(operation: Operation, mode: GenerationMode) -> list[Any]:
    """Generated bodies, which seldom name a model; and one that does."""
    redeliver = "/v1/webhook-endpoints/{endpoint_id}/redeliver"
    given: dict[str, Any] = {"/v1/schedules": NIGHTLY, "/v1/jobs/bulk": MANY, redeliver: {"status": "exhausted"}}
    given |= {"/v1/webhook-endpoints": ENDPOINT, "/v1/budgets": BUDGET}
    is_other = any(word in operation.path for word in ("schedule", "budget", "endpoint"))
    whole = given.get(operation.path, {} if is_other else CLIP)
    return [NOT_SET, whole] if operation.body and mode is GenerationMode.POSITIVE else [NOT_SET]


def _schedule(api: Served, headers: dict[str, str]) -> str:
    """A new one for each operation, since one of them deletes it."""
    body = NIGHTLY | {"name": str(uuid.uuid4())}
    return str(httpx.post(api.url + "/v1/schedules", json=body, headers=headers).json()["id"])


def _endpoint(api: Served, headers: dict[str, str]) -> str:
    """The only one: the others go, since there may be no more than sixteen."""
    url = f"{api.url}/v1/webhook-endpoints"
    for old in httpx.get(url, headers=headers).json()["data"]:
        httpx.delete(api.url + old["urls"]["self"], headers=headers)
    body = ENDPOINT | {"url": f"http://127.0.0.1:9/{uuid.uuid4()}"}
    return str(httpx.post(url, json=body, headers=headers).json()["id"])


def _ask(api: Served, strategy: SearchStrategy[Case], headers: dict[str, str], asked: Counter[tuple[str, int]]) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=ANY)
    @given(case=strategy)
    def ask(case: Case) -> None:
        answer = case.call(base_url=api.url, headers=headers)
        asked[case.operation.label, answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)

    ask()
