"""Rows whose days are over go whole: never what something needs, never another project's, and never the ledger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from serving import eventually
from stage import PATIENCE, Stage, stage

from ops import audit
from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker import keys, retention
from worker.errors import InvalidInput
from worker.storage import Expected
from worker.tables import Job, Project
from worker.webhooks import feed

KILLER = Path(__file__).with_name("prune_killer.py")
OF_JOBS = ("attempts", "events", "outputs", "deliveries", "idempotency_keys", "batch_rows", "runs")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0.01, queue_seconds=0)) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    with stage(environment, sandbox) as made:
        keep(made, outputs=30, rows=60)
        yield made


def keep(play: Stage, project: Project | None = None, **days: int | None) -> Project:
    with play.ctx.engine.begin() as connection:
        return keys.set_retention(connection, (project or play.project).name, days)


def made(play: Stage, project: Project | None = None, **more: Any) -> Job:
    job = play.until(play.submit(project=project, **more))
    assert job.state == "succeeded", job.error
    return job


def prune(play: Stage, days: int = 61) -> dict[str, int]:
    """How many rows of what go, that many days from now."""
    later = play.now() + timedelta(days=days)
    return {one.what: one.rows for one in retention.prune(play.ctx.engine, play.ctx.bucket, None, later, 60)}


def count(play: Stage, table: str = "jobs") -> int:
    found: int = play.sql(f"select count(*) as n from {table}")[0]["n"]
    return found


def test_a_job_goes_after_its_days_with_all_that_was_written_of_it(play: Stage) -> None:
    made(play, webhook_url="https://example.com/hook")
    play.sql("update deliveries set state = 'delivered', run_at = null, claimed = null, finished_at = now()")

    assert prune(play, days=59)["rows"] == 0
    assert count(play) == 1
    assert prune(play, days=61)["rows"] == 1

    assert count(play) == 0
    assert [count(play, table) for table in OF_JOBS] == [0] * len(OF_JOBS)


def test_the_ledger_and_its_sums_stay_as_they_were(play: Stage) -> None:
    made(play)
    before = play.sql("select * from ledger order by id"), play.sql("select * from ledger_sums order by id")
    assert before[0]

    assert prune(play)["rows"] == 1

    assert (play.sql("select * from ledger order by id"), play.sql("select * from ledger_sums order by id")) == before


def test_rows_of_a_job_that_succeeded_stay_while_an_object_of_theirs_is_there(play: Stage) -> None:
    made(play)
    with play.ctx.engine.begin() as connection:
        keys.set_retention(connection, play.project.name, {"outputs": 60})
    play.sql("update outputs set created_at = created_at + interval '10 days'")  # so that it is not its turn yet

    assert prune(play)["rows"] == 0

    assert count(play, "outputs") == 1


def test_outputs_of_a_job_that_did_not_succeed_go_with_its_rows(play: Stage) -> None:
    job = made(play)
    (key,) = (row["key"] for row in play.sql("select key from outputs"))
    play.sql("update jobs set state = 'failed'")

    assert prune(play, days=59) == {"outputs": 0, "rows": 0}
    assert play.ctx.bucket.head(key) is not None
    assert prune(play)["rows"] == 1

    assert play.ctx.bucket.head(key) is None
    assert play.sql("select * from jobs where id = :id", id=job.id) == []


def test_an_output_that_unfinished_work_names_keeps_the_rows_of_a_job_that_failed(play: Stage) -> None:
    made(play)
    (key,) = (row["key"] for row in play.sql("select key from outputs"))
    play.sql("update jobs set state = 'failed'")
    play.submit(kind="summary", model="qwen-flash", input={"documents": [{"key": key}], "mode": "calls"})

    assert prune(play)["rows"] == 0

    assert play.ctx.bucket.head(key) is not None


@pytest.mark.parametrize(
    "change",
    [
        "update jobs set state = 'queued', finished_at = null",
        "update jobs set state = 'held', held_for = 'person', finished_at = null",
        "update jobs set state = 'awaiting_review', finished_at = null",
        "update jobs set finished_at = now() + interval '20 days'",
        "update jobs set billed = 'unknown'",
        "update attempts set billed = 'unknown'",
        "update attempts set closed_at = null",
        "insert into holds (project_id, why) select id, 'a lawsuit' from projects",
        "insert into holds (project_id, job_id, why) select project_id, id, 'a lawsuit' from jobs",
        "insert into schedules (project_id, name, cron, time_zone, template, job_id)"
        " select project_id, 'nightly', '0 2 * * *', 'UTC', '{}', id from jobs",
        "with b as (insert into batches (project_id, name, state, digest, source, report, rows)"
        " select project_id, 'b', 'running', '', '{}', '{}', 1 from jobs returning id)"
        " update jobs set batch_id = b.id from b",
        "with b as (insert into batches (project_id, name, state, digest, source, report, rows)"
        " select project_id, 'b', 'draft', '', '{}', '{}', 1 from jobs returning id)"
        " insert into batch_rows (batch_id, n, line, outcome, job_id)"
        " select b.id, 1, 1, 'existing', jobs.id from b, jobs",
        "insert into deliveries (project_id, job_id, event_id, url, body)"
        " select project_id, job_id, id, 'https://example.com', '{}' from events limit 1",
        "insert into jobs (project_id, kind, model, input, first_take, take)"
        " select project_id, kind, model, input, id, 2 from jobs",
        "with p as (insert into jobs (project_id, kind, model, input, parent_id, round, place)"
        " select project_id, kind, model, input, id, 1, 0 from jobs returning id) select from p",
    ],
    ids=[
        *("unfinished", "held", "awaiting review", "ended later", "bill unknown", "bill of an attempt unknown"),
        *("open attempt", "project under a legal hold", "job under a legal hold", "last of a schedule"),
        *("batch goes on", "named by a draft", "waiting delivery", "unfinished take", "unfinished part"),
    ],
)
def test_what_something_still_needs_stays(play: Stage, change: str) -> None:
    job = made(play)
    play.sql("update outputs set pruned_at = now()")
    play.sql(change)

    assert prune(play)["rows"] == 0

    assert play.job(job)
    assert play.attempts(job)
    assert play.states(job)


def test_takes_and_parts_go_together(play: Stage) -> None:
    job = made(play)
    play.sql(
        "insert into jobs (project_id, kind, model, input, state, run_at, finished_at, first_take, take)"
        " select project_id, kind, model, input, state, null, now(), id, 2 from jobs"
    )
    play.sql(
        "insert into jobs (project_id, kind, model, input, state, run_at, finished_at, parent_id, round, place)"
        " select project_id, kind, model, input, state, null, now(), id, 1, 0 from jobs"
    )
    assert count(play) == 4

    assert prune(play)["rows"] == 4

    assert count(play) == 0
    assert job


def test_a_batch_goes_after_its_jobs_with_its_rows_events_and_manifest(play: Stage) -> None:
    made(play)
    play.sql(
        "with b as (insert into batches (project_id, name, state, digest, source, report, rows, completed_at, manifest)"
        " select project_id, 'b', 'completed', '', '{}', '{}', 2, now(), :key from jobs returning id, project_id),"
        " r as (insert into batch_rows (batch_id, n, line, outcome, job_id)"
        " select b.id, n, n, 'made', case when n = 1 then jobs.id end from b, jobs, generate_series(1, 2) as n),"
        " e as (insert into events (batch_id, project_id, sequence, type, entered)"
        " select id, project_id, 1, 'batch.completed', 'completed' from b)"
        " update jobs set batch_id = b.id from b",
        key=(key := play.sql("select key from outputs")[0]["key"] + ".manifest"),
    )
    play.ctx.bucket.put_stream(key, (b"{}",), "application/jsonl", Expected())

    assert prune(play)["rows"] == 2  # the job, and the batch

    assert [count(play, table) for table in ("jobs", "batches", "batch_rows", "events")] == [0, 0, 0, 0]
    assert play.ctx.bucket.head(key) is None


def test_a_batch_under_a_legal_hold_stays(play: Stage) -> None:
    play.sql(
        "with b as (insert into batches (project_id, name, state, digest, source, report, rows, completed_at)"
        " select id, 'b', 'completed', '', '{}', '{}', 0, now() from projects returning id, project_id)"
        " insert into holds (project_id, batch_id, why) select project_id, id, 'a lawsuit' from b"
    )

    assert prune(play)["rows"] == 0

    assert count(play, "batches") == 1


def test_old_runs_of_a_schedule_go_and_it_stays(play: Stage) -> None:
    play.sql(
        "with s as (insert into schedules (project_id, name, cron, time_zone, template)"
        " select id, 'nightly', '0 2 * * *', 'UTC', '{}' from projects returning id, project_id)"
        " insert into runs (schedule_id, project_id, fire_at, trigger, outcome)"
        " select id, project_id, now() + n * interval '1 day', 'clock', outcome"
        "   from s, (values (0, 'skipped'), (5, 'skipped'), (-1, 'waiting')) as runs (n, outcome)"
    )

    assert prune(play)["rows"] == 1

    assert count(play, "schedules") == 1
    assert count(play, "runs") == 2


def test_what_a_parent_worked_with_goes_from_the_bucket(play: Stage) -> None:
    job = made(play)
    play.sql("update jobs set mode = 'parent'")
    work = play.sql("select key from outputs")[0]["key"].rpartition("/")[0] + "/work/list.jsonl"
    play.ctx.bucket.put_stream(work, (b"{}",), "application/jsonl", Expected())

    assert prune(play)["rows"] == 1

    assert play.ctx.bucket.head(work) is None
    assert job


def test_another_projects_rows_stay(play: Stage) -> None:
    with play.ctx.engine.begin() as connection:
        other = keys.create_project(connection, "other")
    kept = made(play, other)
    made(play)
    play.sql("update outputs set pruned_at = now()")

    assert prune(play)["rows"] == 1

    assert play.job(kept)
    assert play.attempts(kept)


def wait_for_a_lock(play: Stage) -> None:
    """Until somebody in the test's database waits for a row."""
    deadline = time.monotonic() + PATIENCE
    waiting = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    while not play.sql(waiting):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_job_that_is_made_again_meanwhile_stays_whole(play: Stage) -> None:
    job = made(play)
    play.sql("update outputs set pruned_at = now()")
    with play.ctx.engine.connect() as connection:
        connection.exec_driver_sql("update jobs set state = 'queued', finished_at = null, run_at = now()")
        assert prune(play)["rows"] == 0  # it does not wait for the retry
        connection.commit()

    assert prune(play)["rows"] == 0
    assert play.job(job).state == "queued"
    assert play.attempts(job)


def test_a_take_that_is_made_again_while_its_family_goes_keeps_all_of_it(play: Stage) -> None:
    job = made(play)
    play.sql("update outputs set pruned_at = now()")
    play.sql(
        "insert into jobs (project_id, kind, model, input, state, run_at, finished_at, first_take, take)"
        " select project_id, kind, model, input, 'failed', null, now(), id, 2 from jobs"
    )
    pruning = threading.Thread(target=prune, args=(play,))

    with play.ctx.engine.connect() as connection:
        connection.exec_driver_sql(
            "update jobs set state = 'queued', finished_at = null, run_at = now() where take = 2"
        )
        pruning.start()
        wait_for_a_lock(play)
        connection.commit()
    pruning.join()

    assert count(play) == 2
    assert play.attempts(job)


def test_two_prunes_at_once_share_the_work(play: Stage) -> None:
    many = 1200
    made(play)
    play.sql(
        "insert into jobs (project_id, kind, model, input, state, run_at, finished_at)"
        " select project_id, kind, model, input, state, null, now() from jobs, generate_series(2, :many)",
        many=many,
    )
    went: list[int] = []
    both = threading.Barrier(2)

    def run() -> None:
        both.wait()
        went.append(prune(play)["rows"])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(went) == many
    assert count(play) == 0


@pytest.mark.parametrize(("point", "left"), [("deleted", 1000), ("committed", 800)])
def test_a_prune_that_is_killed_leaves_whole_jobs_and_is_done_again(
    play: Stage, environment: dict[str, str], point: str, left: int
) -> None:
    made(play)
    play.sql("update outputs set pruned_at = now()")
    play.sql(
        "with made as (insert into jobs (project_id, kind, model, input, state, run_at, finished_at)"
        " select project_id, kind, model, input, state, null, now() from jobs, generate_series(2, 1200) returning *),"
        " called as (insert into attempts (job_id, project_id, number, owner, account, region, model, request_hash,"
        " billed, closed_at) select id, project_id, 1, '', '', '', model, '', 'no', now() from made)"
        " insert into events (job_id, project_id, sequence, type, entered)"
        " select id, project_id, 1, 'job.queued', 'queued' from made"
    )

    killed = subprocess.run(
        [sys.executable, str(KILLER), point], env={**os.environ, **environment}, timeout=300, check=False
    )

    assert killed.returncode == -signal.SIGKILL
    assert count(play) == left
    assert play.sql("select from jobs j where not exists (select from attempts a where a.job_id = j.id)") == []
    assert play.sql("select from jobs j where not exists (select from events e where e.job_id = j.id)") == []
    assert prune(play)["rows"] == left
    assert [count(play, table) for table in ("jobs", "attempts", "events")] == [0, 0, 0]


def test_a_dry_run_says_what_would_go(play: Stage) -> None:
    made(play)
    play.sql("update outputs set pruned_at = now()")

    with play.ctx.engine.connect() as connection:
        found = {one.what: one.rows for one in retention.due(connection, None, play.now() + timedelta(days=61))}

    assert found["rows"] == 1
    assert count(play) == 1


@pytest.mark.parametrize(
    "days",
    [
        *({"rows": 6, "outputs": 5}, {"rows": 29}, {"rows": 60, "deliveries": 90}, {"outputs": None}, {"outputs": 61}),
        *({"events": 30}, {"events": 30, "deliveries": 40}, {"events": 61, "deliveries": 40}),
    ],
    ids=[
        *("below a week", "below outputs", "below deliveries", "without outputs", "outputs above"),
        *("events without deliveries", "events below deliveries", "events above rows"),
    ],
)
def test_days_of_rows_that_make_no_sense_are_refused(play: Stage, days: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        keep(play, **days)


def told(play: Stage) -> Job:
    """A job that has ended, and was told of."""
    job = made(play, webhook_url="https://example.com/hook")
    play.sql("update deliveries set state = 'delivered', run_at = null, claimed = null, finished_at = now()")
    return job


def test_events_go_after_their_days_and_the_audit_misses_nothing(play: Stage) -> None:
    job = told(play)
    keep(play, deliveries=30, events=40)

    assert prune(play, days=39)["events"] == 0
    assert play.states(job)
    assert prune(play, days=41)["events"] > 0

    assert not play.states(job)
    assert play.document(job)["state"] == "succeeded"
    play.sql("update projects set retention = jsonb_set(retention, '{deliveries}', '-1')")  # as if it were later
    assert audit.audit(play.ctx.engine) == []


@pytest.mark.parametrize(
    "change",
    [
        "update jobs set state = 'failed'",
        "update jobs set billed = 'unknown'",
        "insert into deliveries (project_id, job_id, event_id, url, body)"
        " select project_id, job_id, id, 'https://example.com', '{}' from events limit 1",
        "with told as (delete from deliveries)"
        " insert into holds (project_id, job_id, why) select project_id, id, 'a lawsuit' from jobs",
        "with b as (insert into batches (project_id, name, state, digest, source, report, rows)"
        " select project_id, 'b', 'running', '', '{}', '{}', 1 from jobs returning id)"
        " update jobs set batch_id = b.id from b",
    ],
    ids=["can be made again", "bill unknown", "waiting delivery", "held", "batch goes on"],
)
def test_a_history_that_something_needs_stays(play: Stage, change: str) -> None:
    job = told(play)
    keep(play, deliveries=30, events=40)
    play.sql(change)

    assert prune(play, days=41)["events"] == 0

    assert play.states(job)


def test_the_feed_goes_on_behind_what_has_gone(play: Stage) -> None:
    made(play)
    keep(play, deliveries=30, events=40)
    before = feed.Place.of(fed(play, feed.Place())[-1])
    play.sql("update events set at = at - interval '50 days'")
    play.sql("update jobs set finished_at = finished_at - interval '50 days'")
    made(play)
    whole = fed(play, before)

    assert prune(play, days=0)["events"] > 0

    assert fed(play, before) == whole
    assert fed(play, feed.Place()) == whole


def fed(play: Stage, after: feed.Place) -> list[str]:
    """The places of what the feed tells behind that place, once no transaction of others holds it back."""
    statement = f"select count(*) as n from events where {feed.TOLD} and (xid, id) > (:xid, :id)"
    wanted = play.sql(statement, xid=after.xid, id=after.id)[0]["n"]

    def told() -> list[str] | None:
        with play.ctx.engine.connect() as connection:
            events = feed.page(connection, play.project.id, after, 100).events
        return [str(feed.Place(event.xid, event.id)) for event in events] if len(events) == wanted else None

    found: list[str] = eventually(told)
    return found
