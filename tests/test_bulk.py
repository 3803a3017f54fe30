"""Many jobs at once, by ids or by a filter: each fares as it would by itself."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import batching
import httpx
import pytest
from serving import Served, served
from sqlalchemy import Connection, Engine, select, text, update

from api.routes import bulk as routes
from worker import catalog, keys, moves, settings
from worker.errors import Conflict
from worker.jobs import bulk as jobs_bulk
from worker.jobs import submission
from worker.lanes import slots
from worker.money import budgets
from worker.moves import bulk, children
from worker.states import TERMINAL, HeldFor, Mode, State
from worker.tables import Job

BEFORE = datetime(2026, 11, 22, 12, tzinfo=UTC)
NOW = BEFORE + timedelta(hours=1)
CLIP: dict[str, Any] = {"kind": "text-to-video", "model": "wan2.5-t2v-preview", "mode": Mode.TASK, "input": {}}
HOOK = "https://example.com/hook"

S = State
HELD_FROM = {S.QUEUED: HeldFor.BATCH, S.COPYING: HeldFor.CRASHES, S.UNCERTAIN: HeldFor.UNCERTAIN}
HELD_FROM[S.GATHERING] = HeldFor.CRASHES

# what a cancel leads to, by state, and by what else it depends on
CANCELED: list[tuple[State, dict[str, Any], str]] = [
    *((state, {}, "already_finished") for state in sorted(TERMINAL)),
    (S.QUEUED, {}, "canceled"),
    (S.QUEUED, {"claimed": "sent"}, "canceled"),
    (S.QUEUED, {"claimed": "taken"}, "requested"),
    (S.ADMITTED, {"claimed": "sent", "lane_id": 1}, "canceled"),
    (S.ADMITTED, {"claimed": "taken", "lane_id": 1}, "requested"),
    (S.HELD, {"held_from": S.QUEUED, "held_for": "batch"}, "canceled"),
    (S.HELD, {"held_from": S.COPYING, "held_for": "crashes", "billed": "yes"}, "canceled"),
    (S.HELD, {"held_from": S.UNCERTAIN, "held_for": "uncertain", "billed": "unknown"}, "held_uncertain"),
    (S.HELD, {"held_from": S.GATHERING, "held_for": "crashes"}, "requested"),
    (S.SUBMITTING, {"claimed": "taken", "lane_id": 1}, "requested"),
    (S.UNCERTAIN, {"billed": "unknown", "lane_id": 1}, "requested"),
    (S.RUNNING, {"task_status": "PENDING", "lane_id": 1}, "requested"),
    (S.RUNNING, {"task_status": "PENDING", "claimed": "taken", "lane_id": 1}, "requested"),
    (S.RUNNING, {"task_status": "RUNNING", "lane_id": 1}, "too_late"),
    (S.GATHERING, {}, "requested"),
    (S.COPYING, {}, "too_late"),
    (S.AWAITING_REVIEW, {"review": "required"}, "too_late"),
]
RETRIED = [(state, {}, "retried" if state in bulk.AGAIN else "not_retryable") for state in State if state != S.HELD]
LOOK = ("state", "run_at", "claim", "claimed", "sequence", "cancel_requested", "held_for", "finished_at", "cost")


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.begin() as connection:
        known = settings.Settings.model_validate({"database_url": "", "broker_url": ""})
        slots.sync(connection, catalog.load(), known)
        yield connection


@pytest.fixture
def project(connection: Connection) -> uuid.UUID:
    return keys.create_project(connection, "spring").id


def job_in(connection: Connection, project: uuid.UUID, state: State, mode: Mode, columns: dict[str, Any]) -> Job:
    """A job in that state, with a reservation, an attempt whose verdict is known, and a receiver of all events."""
    told = {"webhook_url": HOOK, "webhook_events": ["job.queued", "job.canceled"], "estimate": 1_500_000}
    job = moves.make(connection, {**CLIP, **told, "mode": mode, "project_id": project}, BEFORE)
    connection.execute(text("delete from deliveries"))
    attempt = connection.execute(
        text(
            "insert into attempts (job_id, project_id, number, owner, account, region, model, request_hash, closed_at)"
            " values (:id, :project, 1, 'o', 'a', 'r', 'm', '', now()) returning id"
        ),
        {"id": job.id, "project": project},
    ).scalar_one()
    if mode == Mode.PARENT and state not in (S.QUEUED, S.ADMITTED):
        columns = {**columns, "round": 1}
        parts = [{**CLIP, "round": 1, "place": place} for place in range(2)]
        children.Make(parts).carry_out(connection, job, BEFORE)
        connection.execute(
            update(Job).where(Job.parent_id == job.id).values(state="failed", run_at=None, finished_at=BEFORE)
        )
    rests = state in TERMINAL or state in (S.HELD, S.AWAITING_REVIEW)
    said = {"state": state, "run_at": None if rests else BEFORE + timedelta(hours=9), "attempt_id": attempt}
    said |= {"finished_at": BEFORE if state in TERMINAL else None}
    connection.execute(update(Job).where(Job.id == job.id).values({**said, **columns}))
    return moves.reread(connection, job)


def written(connection: Connection, job: Job) -> dict[str, Any]:
    """All that is on record of the job and of its children, but for ids and claims of events."""
    ours = "(select id from jobs where id = :id or parent_id = :id)"
    tables = {
        "jobs": f"select {', '.join(LOOK)}, place from jobs where id in {ours} order by place nulls first",
        "events": f"select sequence, type, left, entered, why, at from events where job_id in {ours} order by 1, 2",
        "ledger": f"select entry, micros, at, reserved_at from ledger where job_id in {ours} order by id",
        "deliveries": f"select url, receiver, replace(body, '{job.id}', '') as body from deliveries"
        f" where job_id in {ours} order by created_at",
    }
    found = {}
    for name, statement in tables.items():
        quoted = statement.replace(" left,", ' "left",')
        found[name] = [dict(row) for row in connection.execute(text(quoted), {"id": job.id}).mappings()]
    for row in found["deliveries"]:
        row["body"] = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "", row["body"])
    return found


def one_by_one(connection: Connection, project: uuid.UUID, action: str, job: Job) -> str:
    try:
        if action == "cancel":
            return submission.cancel(connection, project, job.id, NOW)[1]
        submission.retry(connection, project, job.id, NOW)
    except Conflict as refused:
        return refused.code
    return "retried"


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize(("action", "cases"), [("cancel", CANCELED), ("retry", RETRIED)])
def test_of_many_each_fares_as_it_would_by_itself(
    connection: Connection, project: uuid.UUID, action: str, cases: list[tuple[State, dict[str, Any], str]], mode: Mode
) -> None:
    alone = [job_in(connection, project, state, mode, columns) for state, columns, _ in cases]
    together = [job_in(connection, project, state, mode, columns) for state, columns, _ in cases]
    act = bulk.cancel if action == "cancel" else bulk.retry
    room = () if action == "cancel" else (budgets.seen(connection, project),)
    would: Any = bulk.would_cancel if action == "cancel" else bulk.would_retry

    outcomes = [one_by_one(connection, project, action, job) for job in alone]
    foreseen = would(connection, project, [job.id for job in together], *room)
    fates = act(connection, project, [job.id for job in together], NOW)

    assert outcomes == [expected for _, _, expected in cases]
    assert [fates[job.id].outcome for job in together] == outcomes
    assert foreseen == fates
    for single, many, case in zip(alone, together, cases, strict=True):
        assert written(connection, many) == written(connection, single), case
    told = set(connection.execute(text("select job_id from deliveries")).scalars())
    assert told.issuperset(job.id for job, fared in zip(together, outcomes, strict=True) if fared == "canceled")


@pytest.mark.parametrize(
    ("billed", "closed", "is_released"),
    [("no", False, True), ("yes", True, True), ("unknown", True, True), ("unknown", False, False)],
)
def test_what_was_reserved_is_given_back_unless_a_call_may_still_be_billed(
    connection: Connection, project: uuid.UUID, billed: str, closed: bool, is_released: bool
) -> None:
    job = job_in(connection, project, S.QUEUED, Mode.TASK, {"billed": billed})
    if not closed:
        connection.execute(text("update attempts set closed_at = null"))

    bulk.cancel(connection, project, [job.id], NOW)

    lines = connection.execute(text("select entry, micros, attempt_id from ledger order by id")).all()
    released = [("release", -1_500_000, job.attempt_id)] if is_released else []
    assert [tuple(line) for line in lines] == [("reserve", 1_500_000, None), *released]


def test_children_are_not_moved_by_themselves(connection: Connection, project: uuid.UUID) -> None:
    parent = job_in(connection, project, S.GATHERING, Mode.PARENT, {})
    parts = connection.execute(select(Job.id).where(Job.parent_id == parent.id)).scalars().all()
    connection.execute(update(Job).where(Job.id == parts[0]).values(state="queued", finished_at=None, run_at=NOW))

    canceled = bulk.cancel(connection, project, parts, NOW)
    retried = bulk.retry(connection, project, parts, NOW)

    assert [canceled[part].outcome for part in parts] == ["is_child", "already_finished"]
    assert {fate.outcome for fate in retried.values()} == {"is_child"}


def test_a_parent_whose_part_may_be_paid_for_is_not_made_again(connection: Connection, project: uuid.UUID) -> None:
    parent = job_in(connection, project, S.FAILED, Mode.PARENT, {})
    connection.execute(
        text(
            "insert into attempts (job_id, project_id, number, owner, account, region, model, request_hash)"
            " select id, project_id, 1, 'o', 'a', 'r', 'm', '' from jobs where parent_id = :id limit 1"
        ),
        {"id": parent.id},
    )

    assert bulk.retry(connection, project, [parent.id], NOW)[parent.id].outcome == "attempt_open"


def filled(api: Served, jobs: int, state: str = "queued", **columns: Any) -> str:
    """A batch of spring's with so many jobs in one state."""
    (project,) = api.sql("select id from projects where name = 'spring'")
    with api.engine.begin() as connection:
        batch = batching.make_batch(connection, project["id"])
        batching.fill(connection, batch, jobs, state, **columns)
    return str(batch)


def ask(http: httpx.Client, action: str = "cancel", **said: Any) -> dict[str, Any]:
    answer = http.post("/v1/jobs/bulk", json={"action": action, **said})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def counts(api: Served) -> dict[str, int]:
    return {row["state"]: row["n"] for row in api.sql("select state, count(*) as n from jobs group by state")}


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({"filter": {}}, "/filter", "empty_filter"),
        ({"filter": {"kind": None}}, "/filter", "empty_filter"),
        ({"filter": {"state": []}}, "/filter", "empty_filter"),
        ({"filter": {"metadata": {}, "batch": None}}, "/filter", "empty_filter"),
        ({"filter": {"stat": "queued"}}, "/filter/stat", "unknown_field"),
        ({"filter": {"q": "kitten"}}, "/filter/q", "unknown_field"),
        ({"filter": {"state": "gone"}}, "/filter/state/0", "not_allowed"),
        ({"filter": {"batch": "x"}}, "/filter/batch", "bad_id"),
        ({"filter": {"created_after": "yesterday"}}, "/filter/created_after", "bad_time"),
        ({"filter": {"created_after": "2026-01-01T00:00:00"}}, "/filter/created_after", "bad_time"),
        ({"ids": []}, "/ids", "too_short"),
        ({"ids": [str(uuid.UUID(int=n)) for n in range(10_001)]}, "/ids", "too_long"),
        ({"ids": ["x"]}, "/ids/0", "bad_id"),
        ({}, "", "ids_or_filter"),
        ({"ids": [str(uuid.UUID(int=1))], "filter": {"state": "queued"}}, "", "ids_or_filter"),
        ({"action": "delete", "filter": {"state": "queued"}}, "/action", "not_allowed"),
    ],
)
def test_what_does_not_say_which_jobs_is_refused_and_does_nothing(
    api: Served, http: httpx.Client, body: dict[str, Any], pointer: str, code: str
) -> None:
    filled(api, 1)

    answer = http.post("/v1/jobs/bulk", json={"action": "cancel", **body})

    assert answer.status_code == 422
    first = answer.json()["errors"][0]
    assert (first["pointer"], first["code"]) == (pointer, code)
    assert counts(api) == {"queued": 1}


def test_a_dry_run_counts_and_prices_and_changes_nothing(api: Served, http: httpx.Client) -> None:
    batch = filled(api, 3)
    filled(api, 2)
    before = api.sql("select * from jobs order by id")

    foreseen = ask(http, filter={"batch": batch}, dry_run=True)

    assert api.sql("select * from jobs order by id") == before
    assert (foreseen["dry_run"], foreseen["outcomes"]) == (True, {"canceled": 3})
    assert foreseen["cost"] == {"currency": "CNY", "estimated": "4.50", "unpriced": 0}
    assert ask(http, filter={"batch": batch}) == foreseen | {"dry_run": False}
    assert counts(api) == {"canceled": 3, "queued": 2}
    again = ask(http, "retry", filter={"batch": batch, "state": "canceled"})
    assert (again["outcomes"], again["cost"]["estimated"]) == ({"retried": 3}, "4.50")
    assert counts(api) == {"queued": 5}


def test_ids_are_answered_one_by_one_and_anothers_are_not_found(api: Served, http: httpx.Client) -> None:
    filled(api, 1)
    filled(api, 1, "succeeded")
    ids = [str(row["id"]) for row in api.sql("select id from jobs order by state")]
    nobody = str(uuid.uuid4())

    done = ask(http, ids=[*ids, nobody, nobody])

    assert done["jobs"] == 3
    assert done["outcomes"] == {"canceled": 1, "already_finished": 1, "not_found": 1}
    assert done["refused"] == [{"id": nobody, "code": "not_found", "message": "the project has no such job"}]
    assert ask(http, "retry", ids=ids)["outcomes"] == {"retried": 1, "not_retryable": 1}


def test_each_condition_narrows_as_in_the_list(api: Served, http: httpx.Client) -> None:
    batch = filled(api, 2)
    api.sql("update jobs set custom_id = 'row-1', labels = '{\"sku\": \"A17\"}' where batch_row = 1")
    api.sql("update jobs set created_at = '2020-01-01Z' where batch_row = 2")
    filled(api, 1, "failed")
    found = {
        name: ask(http, filter={name: value}, dry_run=True)["jobs"]
        for name, value in {
            "batch": batch,
            "custom_id": "row-1",
            "metadata": {"sku": "A17"},
            "kind": "text-to-video",
            "model": "wan2.5-t2v-plus",
            "state": "queued,held",
            "created_after": "2026-01-01T00:00:00Z",
            "created_before": "2021-01-01T00:00:00Z",
        }.items()
    }

    assert found == {
        "batch": 2, "custom_id": 1, "metadata": 1, "kind": 2, "model": 2, "state": 2,
        "created_after": 1, "created_before": 0,
    }  # fmt: skip
    assert ask(http, filter={"batch": batch, "custom_id": "row-2"}, dry_run=True)["jobs"] == 0
    assert ask(http, filter={"batch": str(uuid.uuid4())}, dry_run=True)["jobs"] == 0


def test_only_what_the_action_may_change_is_looked_at(api: Served, http: httpx.Client) -> None:
    batch = filled(api, 2, "succeeded")
    with api.engine.begin() as connection:
        batching.fill(connection, uuid.UUID(batch), 1, "failed")

    assert ask(http, filter={"batch": batch})["jobs"] == 0
    assert ask(http, "retry", filter={"batch": batch, "state": "succeeded"})["jobs"] == 0
    assert ask(http, "retry", filter={"batch": batch})["outcomes"] == {"retried": 1}


def test_a_filter_that_finds_more_than_a_call_may_take_goes_on_at_the_cursor(
    api: Served, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_bulk, "MOST", 3)
    batch = filled(api, 5)

    first = ask(http, filter={"batch": batch}, dry_run=True)
    rest = ask(http, filter={"batch": batch}, dry_run=True, cursor=first["next_cursor"])

    assert (first["jobs"], first["has_more"]) == (3, True)
    assert (rest["jobs"], rest["has_more"], rest["next_cursor"]) == (2, False, None)
    assert ask(http, filter={"batch": batch})["has_more"]
    assert ask(http, filter={"batch": batch})["outcomes"] == {"canceled": 2}


def test_the_first_hundred_refusals_are_named(api: Served, http: httpx.Client) -> None:
    filled(api, 120, "held", held_for="uncertain", held_from="uncertain")

    done = ask(http, filter={"state": "held"})

    assert done["outcomes"] == {"held_uncertain": 120}
    assert len(done["refused"]) == 100
    assert {each["code"] for each in done["refused"]} == {"held_uncertain"}


def test_no_more_jobs_are_made_again_than_the_project_may_have(environment: dict[str, str]) -> None:
    with served(environment, max_waiting=3) as api, api.http(api.key("spring")) as http:
        filled(api, 1)
        batch = filled(api, 4, "failed")

        foreseen = ask(http, "retry", filter={"batch": batch}, dry_run=True)
        done = ask(http, "retry", filter={"batch": batch})

        assert done["outcomes"] == foreseen["outcomes"] == {"retried": 2, "too_many_waiting": 2}
        assert counts(api) == {"queued": 3, "failed": 2}


def test_ten_thousand_ids_fit_a_body(api: Served, http: httpx.Client) -> None:
    filled(api, 2)
    known = [str(row["id"]) for row in api.sql("select id from jobs")]

    done = ask(http, ids=[*known, *(str(uuid.uuid4()) for _ in range(9_998))])

    assert done["outcomes"] == {"not_found": 9_998, "canceled": 2}


def test_the_jobs_of_a_batch_are_listed_page_by_page(api: Served, http: httpx.Client) -> None:
    batch = filled(api, 5)
    api.sql("update jobs set state = 'held', held_for = 'batch', run_at = null where batch_row in (1, 4)")
    filled(api, 2)
    seen: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        page = http.get("/v1/jobs", params={"batch": batch, "limit": 2, **cursor}).json()
        seen += [job["batch_row"] for job in page["data"]]
        if not page["has_more"]:
            break
        cursor = {"cursor": page["next_cursor"]}

    assert seen == [5, 4, 3, 2, 1]
    held = http.get("/v1/jobs", params={"batch": batch, "state": "held"}).json()["data"]
    assert [job["batch_row"] for job in held] == [4, 1]


def test_a_batch_is_paused_resumed_canceled_and_retried_over_http(api: Served, http: httpx.Client) -> None:
    batch = filled(api, 2)
    url = f"/v1/batches/{batch}"

    assert http.post(f"{url}/pause").json()["state"] == "paused"
    assert http.post(f"{url}/retry-failed").json()["code"] == "batch_paused"
    assert http.post(f"{url}/resume").json()["state"] == "running"
    assert http.post(f"{url}/cancel").json()["canceled_at"] is not None
    foreseen = http.post(f"{url}/retry-failed?dry_run=true").json()
    assert (foreseen["outcomes"], foreseen["cost"]["estimated"]) == ({"retried": 2}, "3.00")
    assert http.post(f"{url}/retry-failed?states=failed,expired").json()["jobs"] == 0
    assert http.post(f"{url}/retry-failed?states=succeeded").status_code == 422
    assert http.post(f"{url}/retry-failed").json()["outcomes"] == {"retried": 2}
    assert counts(api) == {"queued": 2}


class Told:
    """A sender that keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.hints = 0

    def hint(self) -> None:
        self.hints += 1

    def tell(self, event: dict[str, Any]) -> None:
        self.events.append(event)


def test_flower_is_told_of_what_was_moved_of_as_many_as_it_keeps(
    api: Served, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "_TOLD", 3)
    told = Told()
    api.app.state.context = replace(api.app.state.context, sender=told)
    batch = filled(api, 5)
    api.sql("update jobs set state = 'running', task_status = 'PENDING' where batch_row = 1")

    ask(http, filter={"batch": batch}, dry_run=True)
    assert (told.events, told.hints) == ([], 0)
    ask(http, filter={"batch": batch})

    assert [event["type"] for event in told.events] == ["task-revoked"] * 3
    assert told.hints > 0
    assert api.sql("select state, cancel_requested from jobs where batch_row = 1") == [
        {"state": "running", "cancel_requested": True}
    ]
    http.post(f"/v1/batches/{batch}/retry-failed")
    assert [event["type"] for event in told.events][3:] == ["task-received"] * 3
