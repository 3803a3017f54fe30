"""The feed: each event once, in an order that never changes behind a reader, whoever commits when."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving import CLIP, Served, eventually
from sqlalchemy import Connection, Engine, event, text

from worker import keys
from worker.tables import Project
from worker.webhooks import feed
from worker.webhooks.feed import Place

START = Place()
MADE = """
insert into jobs (project_id, parent_id, round, place, kind, model, input, sequence)
select :project, parent.id, 1, case when parent.id is not null then 0 end, 'text-to-video', '', '{}', 1
  from (select cast(:parent as uuid) as id) as parent returning id
"""
EVENT = """
insert into events (job_id, project_id, sequence, type, entered)
values (:job, :project, :n, :type, 'queued') returning id
"""


@pytest.fixture
def project(engine: Engine) -> Project:
    with engine.begin() as connection:
        return keys.create_project(connection, "spring")


def make(connection: Connection, project: Project, parent: uuid.UUID | None = None) -> uuid.UUID:
    job: uuid.UUID = connection.execute(text(MADE), {"project": project.id, "parent": parent}).scalar_one()
    return job


def write(connection: Connection, project: Project, job: uuid.UUID, n: int, kind: str = "job.queued") -> int:
    said = {"job": job, "project": project.id, "n": n, "type": kind}
    return int(connection.execute(text(EVENT), said).scalar_one())


def read(engine: Engine, project: Project, after: Place = START, limit: int = 100) -> tuple[list[int], Place]:
    """All events after that place, page by page."""
    found: list[int] = []
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while True:
            page = feed.page(connection, project.id, after, limit)
            found += [row.id for row in page.events]
            after = page.after
            if not page.has_more:
                return found, after


def test_what_commits_late_under_a_low_number_is_not_passed_by(engine: Engine, project: Project) -> None:
    with engine.begin() as connection:
        job = make(connection, project)
    with engine.connect() as slow, engine.connect() as fast:
        first = write(slow, project, job, 1)
        second = write(fast, project, job, 2)
        fast.commit()

        before, place = read(engine, project)
        slow.commit()
        after, end = eventually(lambda: _some(read(engine, project, place)))

    assert before == [], "the second is not shown before the first, which is open"
    assert after == [first, second]
    assert read(engine, project, end) == ([], end)


def test_a_number_that_was_taken_early_and_written_late_is_not_passed_by(engine: Engine, project: Project) -> None:
    """Its transaction began to write after the other had, and holds the lower number all the same."""
    with engine.begin() as connection:
        job = make(connection, project)
    with engine.connect() as slow, engine.connect() as fast:
        with engine.begin() as beside:
            early = beside.execute(text("select nextval(pg_get_serial_sequence('events', 'id'))")).scalar_one()
        later = write(fast, project, job, 2)
        fast.commit()
        before, place = eventually(lambda: _some(read(engine, project)))
        slow.execute(
            text(
                "insert into events (id, job_id, project_id, sequence, type, entered) overriding system value"
                " values (:id, :job, :project, 1, 'job.queued', 'queued')"
            ),
            {"id": early, "job": job, "project": project.id},
        )
        slow.commit()

        after, _ = eventually(lambda: _some(read(engine, project, place)))

    assert (before, after) == ([later], [early])
    assert early < later


def test_a_reader_among_writers_sees_each_event_once_in_the_order_of_a_reader_afterwards(
    engine: Engine, project: Project
) -> None:
    with engine.begin() as connection:
        jobs = [make(connection, project) for _ in range(8)]
    written: list[int] = []
    is_over = threading.Event()

    def writes(which: int) -> None:
        dice = random.Random(which)
        for n in range(40):
            with engine.connect() as connection:
                made = [write(connection, project, jobs[which], 2 * n + part) for part in range(2)]
                # others begin and commit meanwhile
                connection.execute(text("select pg_sleep(:s)"), {"s": dice.random() / 200})
                if dice.random() < 0.2:
                    connection.rollback()
                    continue
                connection.commit()
                written.extend(made)

    def reads(limit: int) -> list[int]:
        seen, place = [], START
        while not is_over.is_set():
            some, place = read(engine, project, place, limit)
            seen += some
        eventually(lambda: _all_shown(engine, project, len(written)))
        return seen + read(engine, project, place, limit)[0]

    with ThreadPoolExecutor(11) as pool:
        readers = [pool.submit(reads, limit) for limit in (1, 7, 100)]
        for each in [pool.submit(writes, which) for which in range(8)]:
            each.result()
        is_over.set()
        seen = [reader.result() for reader in readers]

    order = read(engine, project)[0]
    assert sorted(order) == sorted(written)
    assert seen == [order] * 3


def test_parts_of_jobs_and_what_no_webhook_says_are_passed(
    engine: Engine, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_WALKED", 10)
    with engine.begin() as connection:
        parent = make(connection, project)
        child = make(connection, project, parent)
        for n in range(25):
            write(connection, project, child, n)
        write(connection, project, parent, 1, "job.noted")
        told = [write(connection, project, parent, n) for n in (2, 3)]

    with engine.connect() as connection:
        eventually(lambda: read(engine, project)[0])
        page = feed.page(connection, project.id, START, 100)

    assert (list(page.events), page.has_more) == ([], True), "a page has passed ten, and no more"
    assert read(engine, project)[0] == told
    assert read(engine, project, limit=1)[0] == told


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_a_page_reads_a_range_of_the_index_wherever_it_is(engine: Engine, project: Project, part: float) -> None:
    """A statement that is as cheap among ten million: no sort, no scan, and no more rows than it passes."""
    with engine.begin() as connection:
        other = keys.create_project(connection, "autumn")
        for owner in (project, other):
            connection.execute(
                text(
                    "with made as (insert into jobs (project_id, kind, model, input)"
                    " select :project, 'text-to-video', '', '{}' from generate_series(1, 300) returning id)"
                    " insert into events (job_id, project_id, sequence, type, entered, xid)"
                    " select made.id, :project, n, case n % 2 when 0 then 'job.noted' else 'job.queued' end, '', n"
                    " from made, generate_series(1, 100) as n"
                ),
                {"project": owner.id},
            )
        connection.execute(text("analyze"))
        plans: list[dict[str, Any]] = []

        def explain(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
            with cursor.connection.cursor() as beside:
                beside.execute("explain (analyze, format json) " + statement, parameters)
                plans.append(beside.fetchone()[0][0]["Plan"])

        event.listen(connection, "before_cursor_execute", explain)
        page = feed.page(connection, project.id, Place(int(100 * part), 0), 100)

    nodes = list(_nodes(plans[0]))
    assert len(page.events) == (100 if part < 1 else 0)
    assert {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"} == set()
    walks = [node for node in nodes if node.get("Index Name") == "ix_events_told"]
    assert [node["Actual Rows"] <= feed._WALKED + 1 for node in walks] == [True]
    assert max(node["Actual Rows"] * node["Actual Loops"] for node in nodes) <= feed._WALKED + 1
    jobs = [node["Actual Loops"] for node in nodes if node.get("Relation Name") == "jobs"]
    assert max(jobs) <= 101, "no job is looked up that the page does not show"


def test_the_feed_says_what_webhooks_say(api: Served) -> None:
    with api.http(api.key("spring")) as http:
        batch = http.post("/v1/batches?commit=true", json={"items": [CLIP | {"custom_id": "row-17"}]}).json()
        job = http.post("/v1/jobs", json=CLIP).json()
        http.post(job["urls"]["cancel"])
        eventually(lambda: len(http.get("/v1/events").json()["data"]) == 3)
        first = http.get("/v1/events", params={"limit": 1}).json()
        rest = http.get("/v1/events", params={"after": first["after"]}).json()
        nothing = http.get("/v1/events", params={"after": rest["after"]}).json()
        refused = http.get("/v1/events", params={"after": "yesterday"})

    (row,) = first["data"]
    assert (row["type"], row["sequence"]) == ("job.queued", 1)
    assert row["id"].startswith("evt_")
    assert {name: row["data"][name] for name in ("object", "state", "custom_id", "batch_id")} == {
        "object": "job",
        "state": "queued",
        "custom_id": "row-17",
        "batch_id": batch["id"],
    }
    assert [one["type"] for one in rest["data"]] == ["job.queued", "job.canceled"]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert (nothing["data"], nothing["after"]) == ([], rest["after"])
    assert refused.status_code == 422


@pytest.mark.parametrize("after", ["yesterday", "\u0661-\u0661", "\uff11-\uff11"])
def test_a_cursor_is_written_in_plain_digits(api: Served, after: str) -> None:
    with api.http(api.key("spring")) as http:
        refused = http.get("/v1/events", params={"after": after})
    assert refused.status_code == 422


def _some(found: tuple[list[int], Place]) -> tuple[list[int], Place] | None:
    return found if found[0] else None


def _all_shown(engine: Engine, project: Project, count: int) -> bool:
    return len(read(engine, project)[0]) == count


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)
