"""Lists of jobs: right, and read from an index, however many jobs have ended."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, text

from ops.local import servers as embedded
from tests.bench import seeding
from worker import catalog, keys, settings
from worker.jobs import reading, review
from worker.jobs.reading import Filter
from worker.lanes import slots

ROWS, OTHERS, PAGE = 20_000, 2_000, 20
FEW = 500  # rows that a list may read: a page of each group, and the jobs of a minute where a time is given
PREPARED = 6  # times that psycopg is given a statement before Postgres plans it once for all values


@pytest.fixture(scope="module")
def seeded(servers: embedded.Servers, template: str) -> Iterator[Engine]:
    """A database in which two projects have jobs that ended, a failed one in a hundred, none of late."""
    name = f"test_{uuid.uuid4().hex}"
    with servers.connect() as connection:
        connection.execute(f"create database {name} template {template}".encode())
    engine = create_engine(servers.url_of(name))
    known = settings.Settings.model_validate({"database_url": "", "broker_url": ""})
    with engine.begin() as connection:
        slots.sync(connection, catalog.load(), known)
        projects = [keys.create_project(connection, project).id for project in ("spring", "summer")]
    for project, count in zip(projects, (ROWS, OTHERS), strict=True):
        seeding.ended(engine, project, 0, count)
    yield engine
    engine.dispose()
    with servers.connect() as connection:
        connection.execute(f"drop database {name} with (force)".encode())


def middle() -> datetime:
    """When half of spring's jobs were there, which were made five a second."""
    return datetime.now(UTC) - timedelta(seconds=ROWS / 5 / 2)


LISTS: dict[str, tuple[Filter, str]] = {
    "all": (Filter(), "true"),
    "a state that many have": (Filter(states=("succeeded",)), "state = 'succeeded'"),
    "a state that few have": (Filter(states=("failed",)), "state = 'failed'"),
    "a state that none has": (Filter(states=("held",)), "false"),
    "states": (Filter(states=("failed", "expired")), "state in ('failed', 'expired')"),
    "a kind that a few old ones have": (Filter(kind="speech"), "kind = 'speech'"),
    "a kind": (Filter(kind="text"), "kind = 'text'"),
    "a model": (Filter(model="wanx2.1-t2v-turbo"), "model = 'wanx2.1-t2v-turbo'"),
    "kind, model, state": (
        Filter(kind="text-to-video", model="wan2.5-t2v-preview", states=("failed", "held")),
        "kind = 'text-to-video' and model = 'wan2.5-t2v-preview' and state = 'failed'",
    ),
    "before": (Filter(created_before=middle()), "created_at < :before"),
    "after": (Filter(created_after=middle()), "created_at > :after"),
    "between, of a kind": (
        Filter(kind="text", created_after=middle() - timedelta(minutes=5), created_before=middle()),
        "kind = 'text' and created_at > :after and created_at < :before",
    ),
    "before, and a state": (
        Filter(states=("failed",), created_before=middle()),
        "state = 'failed' and created_at < :before",
    ),
    "custom id": (Filter(custom_id="row-9999"), "custom_id = 'row-9999'"),
    "custom id and state": (Filter(custom_id="row-9999", states=("failed",)), "false"),
    "labels": (Filter(metadata={"sku": "A15000"}), "labels ->> 'sku' = 'A15000'"),
    "labels that none has": (Filter(metadata={"sku": "B1"}), "false"),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_finds_what_it_is_for_and_reads_little_else(
    seeded: Engine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    wanted, condition = LISTS[name]
    monkeypatch.setattr(reading, "LOOKED_THROUGH", 100)
    with seeded.connect() as connection:
        project = connection.execute(text("select id from projects where name = 'spring'")).scalar_one()
        expected = _expected(connection, project, condition, wanted)
        connection.rollback()
        at_first, read_at_first = _page(connection, project, wanted)
        connection.exec_driver_sql("set plan_cache_mode = force_generic_plan")
        for _ in range(PREPARED):
            reading.page(connection, project, wanted, PAGE)
        connection.commit()
        later, read_later = _page(connection, project, wanted)
        onward = replace(wanted, before=expected[PAGE // 2]) if len(expected) > PAGE // 2 else None
        rest, read_of_rest = _page(connection, project, onward) if onward else ([], 0)

    assert at_first == later == expected[:PAGE]
    assert rest == (expected[PAGE // 2 + 1 :][:PAGE] if onward else [])
    assert max(read_at_first, read_later, read_of_rest) <= FEW


def test_a_search_that_no_index_serves_reads_as_many_jobs_as_it_may(seeded: Engine) -> None:
    wanted = Filter(q="no such words")
    with seeded.connect() as connection:
        project = connection.execute(text("select id from projects where name = 'spring'")).scalar_one()
        last = reading.last_to_look_at(connection, project, wanted, most=100)
        connection.rollback()
        found, read = _page(connection, project, replace(wanted, last=last))

    assert (found, read) == ([], 100)


def test_the_takes_of_a_job_are_found_by_their_index(seeded: Engine) -> None:
    linked = text("update jobs set take = :take, first_take = :first where id = :id")
    with seeded.connect() as connection:
        project = connection.execute(text("select id from projects where name = 'spring'")).scalar_one()
        ids = [job.id for job in reading.page(connection, project, Filter(), 3)]
        for take, its_id in enumerate(ids[1:], 2):
            connection.execute(linked, {"id": its_id, "take": take, "first": ids[0]})
        connection.exec_driver_sql("set plan_cache_mode = force_generic_plan")
        second = reading.one(connection, project, ids[1])
        before = connection.execute(_READ).scalar_one()
        found = review.takes(connection, second)
        read = connection.execute(_READ).scalar_one() - before
        connection.rollback()

    assert [job.id for job in found] == ids
    assert read < 10, read


def test_what_waits_alone_in_its_line_is_told_its_place_by_an_index(seeded: Engine) -> None:
    """Whether another project waits too is asked of the index: of fifty thousand jobs it took a second a page."""
    with seeded.connect() as connection:
        project = connection.execute(text("select id from projects where name = 'spring'")).scalar_one()
        connection.execute(text(_WAIT), {"project": project, "jobs": 20_000})
        connection.exec_driver_sql("analyze jobs")
        jobs = reading.page(connection, project, Filter(states=("queued",)), PAGE)
        before = connection.execute(_SCANNED).scalar_one()
        shown = reading.documents(connection, "spring", jobs, datetime.now(UTC))
        scanned = connection.execute(_SCANNED).scalar_one() - before
        connection.rollback()

    assert [job.waiting_on.position for job in shown if job.waiting_on] == list(range(1, PAGE + 1))
    assert scanned == 0


def test_an_id_is_of_a_time(seeded: Engine) -> None:
    with seeded.connect() as connection:
        row = connection.execute(text("select id, created_at from jobs order by random() limit 1")).one()

    within = Filter(created_after=row.created_at - timedelta(minutes=2), created_before=row.created_at).ids
    beyond = Filter(created_after=datetime.max.replace(tzinfo=UTC), created_before=datetime.min.replace(tzinfo=UTC)).ids

    assert within[0] < row.id < within[1]
    assert beyond[1] == uuid.UUID(int=0) < beyond[0]


def _page(connection: Connection, project: uuid.UUID, wanted: Filter) -> tuple[list[uuid.UUID], int]:
    """The ids of a page, and how many rows of `jobs` were read for it."""
    before = connection.execute(_READ).scalar_one()
    found = [job.id for job in reading.page(connection, project, wanted, PAGE)]
    read = connection.execute(_READ).scalar_one() - before
    connection.commit()
    return found, read


def _expected(connection: Connection, project: uuid.UUID, condition: str, wanted: Filter) -> list[uuid.UUID]:
    said: dict[str, Any] = {
        "project": project,
        **({"after": wanted.created_after} if ":after" in condition else {}),
        **({"before": wanted.created_before} if ":before" in condition else {}),
    }
    statement = f"select id from jobs where project_id = :project and {condition} order by id desc"
    return list(connection.execute(text(statement), said).scalars())


# From end to end or by an index; it grows within a transaction.
_READ = text("select seq_tup_read + coalesce(idx_tup_fetch, 0) from pg_stat_xact_user_tables where relname = 'jobs'")
_SCANNED = text("select seq_tup_read from pg_stat_xact_user_tables where relname = 'jobs'")
_WAIT = """
    insert into jobs (project_id, kind, model, input, rank_at)
    select :project, 'text-to-video', 'wan2.5-t2v-preview', '{"prompt": "x"}', now() - n * interval '1 s'
      from generate_series(1, cast(:jobs as int)) as n
"""
