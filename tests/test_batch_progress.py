"""How far a batch is: counted from the rows, by an index alone, while they change."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, text

from ops.local import servers as embedded
from worker import catalog
from worker.batches import progress
from worker.batches.progress import Progress
from worker.lanes import slots
from worker.settings import Settings
from worker.tables import Batch

MANY = 50_000
MODELS = ("wan2.5-t2v-preview", "wan2.2-t2v-plus", "wanx2.1-t2v-turbo")
CLIP = 3_000_000  # micro-CNY

BATCH = """
insert into batches (project_id, name, digest, source, report, rows, state, committed_at)
select id, 'b', '', '{}', '{}', :rows, 'running', now() from projects order by name limit 1 returning *
"""
JOBS = """
insert into jobs (project_id, kind, model, input, labels, run_at, batch_id, batch_row, estimate, custom_id)
select project_id, 'text-to-video', (cast(:models as text[]))[1 + mod(n, 3)],
       jsonb_build_object('prompt', repeat('a kitten runs in the moonlight ', 5), 'size', '832*480'),
       '{"sku": "A17"}', now(), batches.id, n, :clip, 'row-' || n
  from batches, generate_series(1, :rows) as n where batches.id = :batch
"""


def seed(connection: Connection, rows: int) -> Batch:
    """A running batch of a project, with jobs that wait."""
    connection.execute(text("insert into projects (name, webhook_secret) values ('spring', '')"))
    batch = Batch.of(connection.execute(text(BATCH), {"rows": rows}).mappings().one())
    said = {"batch": batch.id, "rows": rows, "models": list(MODELS), "clip": CLIP}
    connection.execute(text(JOBS), said)
    return batch


def change(connection: Connection, batch: Batch, where: str, columns: str) -> None:
    connection.execute(text(f"update jobs set {columns} where batch_id = :batch and {where}"), {"batch": batch.id})


def look(connection: Connection, batch: Batch, now: datetime | None = None) -> Progress:
    moment = now or connection.execute(text("select now()")).scalar_one()
    return progress.of(connection, [batch], moment)[batch.id]


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.begin() as made:
        yield made


def test_jobs_are_counted_by_state_and_only_states_that_there_are(connection: Connection) -> None:
    batch = seed(connection, 10)
    change(connection, batch, "batch_row <= 3", "state = 'running'")
    change(connection, batch, "batch_row = 4", "state = 'succeeded', finished_at = now(), run_at = null")
    change(connection, batch, "batch_row = 5", "state = 'canceled', finished_at = now(), run_at = null")

    jobs = look(connection, batch).jobs

    assert jobs.by_state == {"queued": 5, "running": 3, "succeeded": 1, "canceled": 1}
    assert (jobs.total, jobs.unfinished) == (10, 8)


def test_what_is_billed_or_has_ended_is_no_longer_to_come(connection: Connection) -> None:
    batch = seed(connection, 6)
    change(connection, batch, "batch_row = 1", "state = 'copying', billed = 'yes', cost = 2500000")
    change(connection, batch, "batch_row = 2", "state = 'failed', finished_at = now(), run_at = null")
    change(connection, batch, "batch_row = 3", "state = 'uncertain', billed = 'unknown'")

    cost = look(connection, batch).cost

    assert (cost.estimated, cost.actual, cost.to_come) == ("18.00", "2.50", "12.00")


def test_of_jobs_without_a_price_no_estimate_is_made_up(connection: Connection) -> None:
    batch = seed(connection, 2)
    change(connection, batch, "true", "estimate = null")

    cost = look(connection, batch).cost

    assert (cost.estimated, cost.actual, cost.to_come) == (None, "0.00", "0.00")


def test_what_was_kept_and_what_a_kept_one_cost_is_said_where_a_person_looks(connection: Connection) -> None:
    batch = seed(connection, 6)
    assert look(connection, batch).review is None

    change(connection, batch, "true", "review = 'required'")
    change(connection, batch, "batch_row <= 4", "billed = 'yes', cost = 3000000, run_at = null")
    change(connection, batch, "batch_row = 1", "state = 'awaiting_review'")
    change(connection, batch, "batch_row = 2", "state = 'rejected', review = 'rejected', finished_at = now()")
    change(connection, batch, "batch_row in (3, 4)", "state = 'succeeded', review = 'approved', finished_at = now()")
    review = look(connection, batch).review

    assert review is not None
    assert (review.waiting, review.approved, review.rejected) == (1, 2, 1)
    assert review.cost_per_approved == "6.00"


def test_a_batch_without_jobs_has_a_progress_too(connection: Connection) -> None:
    found = look(connection, seed(connection, 0))

    assert (found.jobs.total, found.jobs.by_state, found.cost.estimated) == (0, {}, None)
    assert (found.review, found.finish_at) == (None, None)


def test_several_batches_are_counted_each_for_itself(connection: Connection) -> None:
    first = seed(connection, 3)
    again = {"batch": uuid.uuid4(), "first": first.id}
    copied = text(
        "insert into batches (id, project_id, name, digest, source, report, rows, state)"
        " select :batch, project_id, name, digest, source, report, rows, state from batches where id = :first"
        " returning *"
    )
    second = Batch.of(connection.execute(copied, again).mappings().one())
    said: dict[str, Any] = {"batch": second.id, "rows": 5, "models": list(MODELS), "clip": CLIP}
    connection.execute(text(JOBS), said)

    found = progress.of(connection, [first, second], connection.execute(text("select now()")).scalar_one())

    assert [found[batch.id].jobs.total for batch in (first, second)] == [3, 5]


def test_a_batch_ends_with_the_last_of_its_models(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = seed(connection, 12)
    now = connection.execute(text("select now()")).scalar_one()
    asked: list[dict[tuple[str, str], int]] = []

    def spans(_: Any, counts: Any, *__: Any) -> dict[tuple[str, str], timedelta | None]:
        asked.append(dict(counts))
        return {group: timedelta(minutes=1 + n) for n, group in enumerate(sorted(counts))}

    monkeypatch.setattr(progress.forecast, "spans", spans)

    assert look(connection, batch, now).finish_at == now + timedelta(minutes=3)
    # what waits and runs is found by the forecast itself
    assert asked == [{("text-to-video", model): 1 for model in MODELS}]


@pytest.mark.parametrize(
    ("columns", "left"),
    [
        ("state = 'running', started_at = now()", 100),
        ("state = 'running', started_at = now() - interval '30 s'", 70),
        ("state = 'running', started_at = now() - (batch_row || ' s')::interval", 99),  # the newest ends last
        ("state = 'running', started_at = now() - interval '1 h'", 0),  # longer than others: at any moment
        ("state = 'submitting', submitted_at = now() - interval '30 s'", 70),
        ("state = 'uncertain', submitted_at = now() - interval '30 s'", 70),
        ("state = 'copying', submitted_at = now()", 0),
    ],
)
def test_once_nothing_waits_the_end_comes_nearer_with_the_clock(
    connection: Connection, columns: str, left: float
) -> None:
    for model in MODELS:
        said = {"model": model}
        connection.execute(
            text("insert into run_times (model, shape, early, median) values (:model, '', 0, 100)"), said
        )
    batch = seed(connection, 6)
    change(connection, batch, "true", columns)
    now = connection.execute(text("select now()")).scalar_one()

    ends = [
        look(connection, batch, now + timedelta(seconds=later)).finish_at for later in (0, left / 2, left, left + 1)
    ]

    end = now + timedelta(seconds=left)
    assert ends == [end, end, end, end + timedelta(seconds=1)]


def test_what_waits_ends_after_what_runs(connection: Connection) -> None:
    slots.sync(connection, catalog.load(), Settings.model_validate({"database_url": "", "broker_url": ""}))
    batch = seed(connection, 6)
    change(connection, batch, "batch_row > 1", "state = 'running', started_at = now() - interval '1 h'")
    now = connection.execute(text("select now()")).scalar_one()

    found = look(connection, batch, now).finish_at

    assert found is not None
    assert found - now >= timedelta(seconds=catalog.load().model(MODELS[1]).run_seconds.median)


@pytest.mark.parametrize("columns", ["state = 'awaiting_review', run_at = null", "state = 'held', held_for = 'review'"])
def test_what_waits_for_a_person_has_no_time_at_which_it_ends(connection: Connection, columns: str) -> None:
    batch = seed(connection, 6)
    change(connection, batch, "true", columns)

    assert look(connection, batch).finish_at is None


def test_a_paused_batch_has_no_time_at_which_it_ends(connection: Connection) -> None:
    slots.sync(connection, catalog.load(), Settings.model_validate({"database_url": "", "broker_url": ""}))
    batch = seed(connection, 6)

    assert look(connection, batch).finish_at is not None
    assert look(connection, batch.changed({"paused_at": batch.committed_at})).finish_at is None


@pytest.fixture(scope="module")
def large(servers: embedded.Servers, template: str) -> Iterator[tuple[Engine, Batch]]:
    """A database with a batch of fifty thousand jobs, as vacuumed as autovacuum leaves it."""
    name = f"test_{uuid.uuid4().hex}"
    with servers.connect() as connection:
        connection.execute(f"create database {name} template {template}".encode())
    engine = create_engine(servers.url_of(name), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        batch = seed(connection, MANY)
        visible = text("select relallvisible > 0 from pg_class where relname = 'jobs'")
        while not connection.execute(visible).scalar_one():  # the first may come too early after the insertion
            connection.execute(text("vacuum analyze jobs"))
    yield engine, batch
    engine.dispose()
    with servers.connect() as connection:
        connection.execute(f"drop database {name} with (force)".encode())


def test_the_index_alone_is_read_although_the_planner_would_rather_read_the_table(large: tuple[Engine, Batch]) -> None:
    engine, batch = large
    # of one transaction alone: what others have read is told whenever they come to it
    reads = text("select seq_scan from pg_stat_xact_user_tables where relname = 'jobs'")

    with engine.connect().execution_options(isolation_level="READ COMMITTED") as connection:
        before = connection.execute(reads).scalar_one()
        # and not the forecast beside it, which may well read a table whose rows all wait
        groups = connection.execute(progress._GROUPS, {"batches": [batch.id]}).all()
        after = connection.execute(reads).scalar_one()

    assert sum(row.jobs for row in groups) == MANY

    assert after == before
