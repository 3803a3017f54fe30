"""What one project may take of the API's threads, connections and memory, so that others are served meanwhile."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import fields, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi_problem.error import Problem
from serving import CLIP, PATIENCE, Served, eventually, served
from sqlalchemy import event

from api import bodies, callers, context
from api.limits import Gate, Gates, gates
from api.routes import catalog
from worker import database
from worker.jobs import reading

PROJECT = Path(__file__).resolve().parents[1]
SSE = {"accept": "text/event-stream"}
READS = 14  # that are let through at once, searches among them
ENDED = "state = 'canceled', finished_at = now(), run_at = null"


def limited(api: Served, **given: Gate) -> None:
    """Other gates for this API."""
    made = api.app.state.context
    api.app.state.context = replace(made, gates=replace(made.gates, **given))


def test_a_project_over_its_share_is_refused_and_others_are_not() -> None:
    spring, summer, autumn = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    gate = Gate("slow things", each=2, most=3, patience=0)

    async def use() -> tuple[Problem, Problem]:
        async with gate.place(spring), gate.place(spring), gate.place(summer):
            with pytest.raises(Problem) as own:
                await gate.place(spring).__aenter__()
            with pytest.raises(Problem) as others:
                await gate.place(autumn).__aenter__()
        async with gate.place(spring), gate.place(spring), gate.place(autumn):  # all were given back
            return own.value, others.value

    own, others = asyncio.run(use())

    assert (own.status, own.type, own.headers) == (429, "too_many_slow_things", {"retry-after": "1"})
    assert own.detail == "this project has 2 slow things under way, as many as it may"
    assert (others.status, others.type) == (503, "too_many_slow_things")
    assert others.detail == "this server has 3 slow things under way, as many as it takes"


def test_a_request_waits_in_its_projects_line_for_a_place() -> None:
    gate = Gate("things", each=1, most=1, patience=PATIENCE)

    async def use() -> list[int]:
        order: list[int] = []

        async def one(n: int) -> None:
            async with gate.place(None):
                order.append(n)
                await asyncio.sleep(0)

        await asyncio.gather(*map(one, range(5)))
        return order

    assert asyncio.run(use()) == [0, 1, 2, 3, 4]


def test_no_project_may_have_half_of_what_there_is_and_uploads_fit_the_memory_of_a_container() -> None:
    made = gates(50 << 20)

    assert all(getattr(made, gate.name).each * 2 <= getattr(made, gate.name).most for gate in fields(Gates))
    assert made.files.most * (50 << 20) <= 400 << 20
    assert (gates(1 << 30).files.most, gates(1 << 30).files.each) == (1, 1)


@pytest.mark.parametrize(
    ("gate", "method", "path", "headers"),
    [
        ("reads", "GET", "/v1/jobs?limit=5", {}),
        ("requests", "POST", "/v1/jobs", {}),
        ("reads", "GET", "/v1/jobs/{job}/events", {}),
        ("reads", "GET", "/v1/files", {}),
        ("reads", "GET", "/v1/schedules", {}),
        ("reads", "GET", "/v1/models", {}),
        ("searches", "GET", "/v1/jobs?q=kitten", {}),
        ("searches", "GET", "/v1/jobs?state=held", {}),
        ("searches", "GET", "/v1/jobs?metadata.sku=A17", {}),
        ("files", "POST", "/v1/files", {}),
        ("files", "DELETE", "/v1/files/{job}", {}),
        ("streams", "GET", "/v1/jobs/{job}/events", SSE),
        ("streams", "GET", "/v1/events", SSE),
        ("reads", "GET", "/v1/events", {}),
        ("lookups", "GET", "/v1/jobs/{job}/candidates", {}),
        ("lookups", "POST", "/v1/jobs/{job}/resolve", {}),
        ("bodies_on_their_way", "POST", "/v1/jobs/bulk", {}),
        ("uploads_of_batches", "POST", "/v1/batches", {}),
        ("bulk_requests", "POST", "/v1/batches/{job}/cancel", {}),
    ],
)
def test_what_may_be_slow_has_a_gate_of_its_own(
    api: Served, gate: str, method: str, path: str, headers: dict[str, str]
) -> None:
    limited(api, **{gate.partition("_")[0]: Gate(gate, each=0, most=9, patience=0)})
    with api.http(api.key("spring"), **headers) as http:
        refused = http.request(method, path.format(job=uuid.uuid4()))
        alive = http.get("/healthz")

    assert (refused.status_code, refused.json()["code"]) == (429, f"too_many_{gate}")
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["retry-after"] == "1"
    assert alive.status_code == 200


def test_a_hanging_bucket_holds_up_its_users_alone(environment: dict[str, str]) -> None:
    """With 45 uploads under way every thread was taken, and /healthz answered no more."""
    with ExitStack() as deaf, ThreadPoolExecutor(12) as pool:
        bucket = deaf.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
        hangs = environment | {"NORIA_S3_ENDPOINT_URL": f"http://127.0.0.1:{bucket.getsockname()[1]}"}
        with served(hangs) as api, api.http(api.key("spring")) as spring, api.http(api.key("summer")) as summer:
            limited(api, files=Gate("file transfers", each=2, most=9, patience=0))
            file = ("a.txt", b"a document\n")
            uploads = [pool.submit(spring.post, "/v1/files", files={"file": file}, timeout=60) for _ in range(12)]
            eventually(lambda: sum(upload.done() for upload in uploads) == 10)
            other = summer.post("/v1/jobs", json=CLIP).status_code
            own = spring.post("/v1/jobs", json=CLIP).status_code
            alive = summer.get("/healthz").status_code
            refused = [upload.result().status_code for upload in uploads if upload.done()]
            deaf.close()  # the two that hang end with their connections

    assert refused == [429] * 10
    assert (other, own, alive) == (201, 201, 200)


def test_one_projects_streams_leave_room_for_anothers(api: Served) -> None:
    limited(api, streams=Gate("streams", each=1, most=2, patience=0))
    with api.http(api.key("spring"), **SSE) as spring, api.http(api.key("summer"), **SSE) as summer:
        first, other = (http.post("/v1/jobs", json=CLIP).json()["urls"]["events"] for http in (spring, summer))
        with spring.stream("GET", first) as own:
            refused = spring.get(first)
            with summer.stream("GET", other) as others:
                statuses = (own.status_code, refused.status_code, others.status_code)
        again = eventually(lambda: _opens(spring, first))

    assert statuses == (200, 429, 200)
    assert again


def _opens(http: httpx.Client, path: str) -> bool:
    with http.stream("GET", path) as answer:
        return bool(answer.status_code == 200)


@pytest.mark.parametrize(
    ("limit", "path", "form"),
    [("_SECONDS", "/v1/jobs", "application/json"), ("_FILE_SECONDS", "/v1/files", "multipart/form-data; boundary=b")],
)
def test_a_body_that_never_ends_gives_its_place_back(
    api: Served, monkeypatch: pytest.MonkeyPatch, limit: str, path: str, form: str
) -> None:
    """Three projects that dripped a byte now and then held all places of the server, and all others got 503."""
    monkeypatch.setattr(bodies, limit, 0.2)
    line = HTTPConnection(api.url.removeprefix("http://"), timeout=PATIENCE)
    head = {"Authorization": f"Bearer {api.key('spring')}", "Content-Type": form, "Content-Length": "9999"}
    with closing(line):
        line.request("POST", path, body=b"-", headers=head)
        answer = line.getresponse()
        said = json.loads(answer.read())

    assert (answer.status, said["code"]) == (408, "too_slow")


@pytest.mark.parametrize(
    ("gate", "path", "form"),
    [("bulk", "/v1/jobs/bulk", "application/json"), ("drafts", "/v1/batches", "multipart/form-data; boundary=b")],
)
def test_who_sends_slowly_keeps_no_place_among_those_that_are_carried_out(
    api: Served, gate: str, path: str, form: str
) -> None:
    limited(api, **{gate: Gate(gate, each=1, most=1, patience=0)})
    with ExitStack() as lines, api.http(api.key("summer")) as summer:
        for _ in range(2):
            line = lines.enter_context(closing(HTTPConnection(api.url.removeprefix("http://"), timeout=PATIENCE)))
            head = {"Authorization": f"Bearer {api.key('spring')}", "Content-Type": form, "Content-Length": "9999"}
            line.request("POST", path, body=b"--b", headers=head)
        taken = api.app.state.context.gates.bodies if gate == "bulk" else api.app.state.context.gates.uploads
        eventually(lambda: sum(taken.each - own._value for own in taken._own.values()) == 2)
        bulk = summer.post("/v1/jobs/bulk", json={"action": "cancel", "filter": {"kind": "speech"}})
        batch = summer.post("/v1/batches", json={"items": [CLIP]})

    assert (bulk.status_code, batch.status_code) == (200, 201)


def test_health_is_answered_without_a_thread_or_a_connection_of_requests(api: Served) -> None:
    with ExitStack() as held, api.http(None) as http:
        pool = api.engine.pool
        for _ in range(pool.size() + pool._max_overflow):  # type: ignore[attr-defined]
            held.enter_context(api.engine.connect())
        ready, alive = http.get("/readyz"), http.get("/healthz")

    assert (ready.status_code, alive.status_code) == (200, 200)
    assert inspect.iscoroutinefunction(catalog.alive)
    assert inspect.iscoroutinefunction(catalog.ready)
    assert inspect.iscoroutinefunction(context.here)


def test_a_search_for_a_part_of_a_prompt_looks_through_so_many_jobs_a_page(api: Served) -> None:
    with api.http(api.key("spring")) as http:
        made = [http.post("/v1/jobs", json=CLIP | {"custom_id": f"row-{n}"}).json()["id"] for n in range(5)]
        whole = http.get("/v1/jobs?q=kitten").json()
    project = api.row(made[0]).project_id
    with api.engine.connect() as connection:
        last = reading.last_to_look_at(connection, project, reading.Filter(q="row-0"), most=2)
        page = reading.page(connection, project, reading.Filter(q="row", last=last), 9)
        rest = reading.Filter(q="row", before=last)
        beyond = reading.last_to_look_at(connection, project, rest, most=4)

    assert ([job["id"] for job in whole["data"]], whole["has_more"]) == (made[::-1], False)
    assert [str(job.id) for job in page] == made[:2:-1]
    assert (str(last), beyond) == (made[3], None)


def test_hanging_reads_leave_connections_and_threads_to_submissions(api: Served) -> None:
    """Twenty searches of one project held every connection, and nobody could submit."""
    made = api.app.state.context
    patient = database.engine(made.settings, READS, statement_timeout="59s", lock_timeout="59s")
    api.app.state.context = replace(made, reader=patient.execution_options(isolation_level="AUTOCOMMIT"))
    asks = {"spring": 20, "summer": 6, "autumn": 6}
    with ExitStack() as held, ThreadPoolExecutor(32) as pool:
        https = {name: held.enter_context(api.http(api.key(name))) for name in (*asks, "winter")}
        for http in https.values():
            http.post("/v1/jobs", json=CLIP)
        api.sql(f"update jobs set {ENDED}")
        with _outputs_locked(api):
            reads = [
                pool.submit(https[name].get, f"/v1/jobs?{'q=kitten' if n % 3 == 0 else 'limit=5'}")
                for name, count in asks.items()
                for n in range(count)
            ]
            eventually(lambda: patient.pool.checkedout() == READS)  # type: ignore[attr-defined]
            submitted = [https[name].post("/v1/jobs", json=CLIP).status_code for name in ("spring", "winter")]
            still = patient.pool.checkedout()  # type: ignore[attr-defined]
        answered = {read.result().status_code for read in reads}

    assert submitted == [201, 201]
    assert still == READS
    assert answered <= {200, 429, 503}  # the last two: no place was free in time
    assert 200 in answered


PATHS = """
/v1/jobs /v1/jobs?q=kitten /v1/jobs/{job} /v1/jobs/{job}/events /v1/jobs/{job}/attempts /v1/jobs/{job}/children
/v1/jobs/{job}/outputs/0 /v1/files /v1/files/{job} /v1/schedules /v1/schedules/{job} /v1/schedules/{job}/runs /v1/limits
"""


def test_what_only_reads_takes_no_connection_of_submissions(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "REMEMBERED", PATIENCE)
    taken: list[Any] = []
    with api.http(api.key("spring")) as http:
        job = http.post("/v1/jobs", json=CLIP).json()["id"]
        event.listen(api.engine, "checkout", lambda *of: taken.append(of))

        answered = {http.get(path.format(job=job)).status_code for path in PATHS.split()}

        assert (answered, taken) == ({200, 404}, [])
        http.post("/v1/jobs", json=CLIP)
    assert len(taken) == 1


@contextmanager
def _outputs_locked(api: Served) -> Iterator[None]:
    """Reads of jobs hang, since they look for outputs; submissions do not."""
    with api.engine.begin() as locked:
        locked.exec_driver_sql("set local idle_in_transaction_session_timeout = 0")
        locked.exec_driver_sql("lock table outputs in access exclusive mode")
        yield


def test_a_read_that_takes_too_long_says_so(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "_READ_SECONDS", 1)
    with served(environment) as api, api.http(api.key("spring")) as http:
        job = http.post("/v1/jobs", json=CLIP).json()
        api.sql(f"update jobs set {ENDED}")
        with _outputs_locked(api):
            refused = [http.get(path) for path in ("/v1/jobs?q=kitten", job["urls"]["self"])]
        found = http.get("/v1/jobs?q=kitten")

    for answer in refused:
        assert (answer.status_code, answer.json()["code"]) == (503, "search_too_long")
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["detail"] == "this takes more than 1 s to find: narrow it, by state, kind or time"
    assert found.status_code == 200


def test_headers_without_end_are_cut_off(api: Served) -> None:
    """300 MB of them, without a key, took 336 MiB."""
    url, sent = httpx.URL(api.url), 0
    with socket.create_connection((url.host, url.port or 0), timeout=PATIENCE) as line, suppress(OSError):
        line.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\nx-long: ")
        while sent < 64 << 20:
            sent += line.send(b"a" * 65536)  # until the server hangs up

    assert sent < 16 << 20  # what the sockets' own buffers take


def test_every_command_that_serves_the_api_bounds_the_headers() -> None:
    lines = [(PROJECT / name).read_text() for name in ("docker-compose.yml", "README.md", "ops/local/up.py")]

    served_by = [line for text in lines for line in re.findall("uvicorn api.app:app.*", text)]

    assert len(served_by) == len(lines)
    assert all("--http h11" in line for line in served_by)
