"""A batch ends once: its manifest is in the bucket, its event is told, whatever crashes and whoever meddles."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import batching
import pytest
from sqlalchemy import text
from stage import Stage
from standardwebhooks import Webhook

from ops.sandbox.testing import Sandbox
from worker import tick, timeouts
from worker.batches import completion
from worker.errors import ClaimLost
from worker.moves import bulk
from worker.storage import Bucket
from worker.tables import Batch, Delivery

KILLER = Path(__file__).with_name("completion_killer.py")
HOOK = "http://127.0.0.1:9/hooks"  # nobody listens there


def done(play: Stage, rows: int = 3, **columns: Any) -> Batch:
    """A batch whose jobs have ended, which nobody has noticed yet."""
    batch = batching.committed(play, [{"custom_id": f"row-{n}"} for n in range(rows)], **columns)
    batching.finish(play, batch)
    return batch


def due(play: Stage) -> list[tick.Message]:
    """The tick's messages for batches."""
    return [message for message in play.tick() if message.task == "noria.complete"]


def lapse(play: Stage, batch: Batch) -> None:
    play.sql("update batches set run_at = now() - interval '1 s' where id = :b and run_at is not null", b=batch.id)


def taken(play: Stage, batch: Batch) -> Batch:
    """The batch as a worker has it that has taken it just now, from whoever had it before."""
    lapse(play, batch)
    (message,) = due(play)
    with play.ctx.engine.begin() as connection:
        (row,) = completion.claims.take(connection, Batch, message.numbers, completion._LEASE)
    return Batch.of(row._mapping)


def told(play: Stage) -> list[Delivery]:
    return [delivery for delivery in play.deliveries() if delivery.job_id is None]


def kill_at(batch: Batch, point: str, environment: dict[str, str], sandbox: Sandbox) -> None:
    """A real worker process takes the batch, and is killed at the point."""
    settings = {
        **os.environ,
        **environment,
        "NORIA_DASHSCOPE_URL": sandbox.url,
        "PYTHONPATH": str(KILLER.parent.parent),
    }
    command = [sys.executable, str(KILLER), str(batch.id), point]
    died = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr


def without_bucket(play: Stage) -> Stage:
    settings = play.ctx.settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"})
    return replace(play, ctx=replace(play.ctx, bucket=Bucket(settings)))


def test_a_batch_ends_with_its_last_job_and_tells_its_receiver(play: Stage) -> None:
    batch = batching.committed(play, [{"custom_id": "a"}, {"custom_id": "b"}], webhook_url=HOOK)

    ended = batching.ended(play, batch)
    (event,) = batching.events(play, batch)
    (delivery,) = told(play)
    body = json.loads(delivery.body)

    assert ended.completed_at is not None
    assert (ended.run_at, ended.claimed, ended.sequence) == (None, None, 1)
    assert (event["type"], event["job_id"], event["left"], event["entered"], event["sequence"]) == (
        "batch.completed", None, "running", "completed", 1
    )  # fmt: skip
    assert (body["type"], body["sequence"]) == ("batch.completed", 1)
    assert "report" not in body["data"]
    assert body["data"]["manifest"] == ended.manifest
    assert body["data"]["jobs"] == {"total": 2, "unfinished": 0, "by_state": {"succeeded": 2}}
    assert (delivery.event_id, delivery.project_id) == (event["id"], play.project.id)


def test_its_webhook_is_signed_as_others_are(play: Stage, httpserver: Any) -> None:
    httpserver.expect_request("/hooks").respond_with_data("")
    done(play, webhook_url=httpserver.url_for("/hooks"))

    play.drive(lambda: told(play), lambda found: found and found[0].state == "delivered")
    (request,) = [asked for asked, _ in httpserver.log]
    secret = play.sql("select webhook_secret from projects where id = :p", p=play.project.id)[0]["webhook_secret"]

    Webhook(secret).verify(request.get_data(), dict(request.headers))  # raises where it is not


def test_its_manifest_has_a_line_for_the_batch_and_one_for_each_row(play: Stage) -> None:
    batch = batching.committed(play, [{"custom_id": "a"}, {"outcome": "skipped", "custom_id": "b", "faults": []}])

    ended = batching.ended(play, batch)
    header, first, second = batching.manifest(play, batch)
    (job,) = batching.jobs(play, batch)
    (output,) = play.document(job)["outputs"]

    assert ended.manifest == f"{play.project.id}/batches/{batch.id}/manifest.jsonl"
    assert (header["id"], header["state"], header["rows"]["total"]) == (str(batch.id), "completed", 2)
    objects = [{name: output[name] for name in ("key", "sha256", "bytes", "role")}]
    assert first == {
        "row": 1, "line": 2, "custom_id": "a", "outcome": "made", "job_id": str(job.id), "state": "succeeded",
        "objects": objects,
    }  # fmt: skip
    assert (second["outcome"], second["job_id"], second["state"], second["objects"]) == ("skipped", None, None, [])


def test_a_long_manifest_is_written_whole_and_in_order(play: Stage) -> None:
    batch = done(play, rows=1)
    play.sql(
        "insert into batch_rows (batch_id, n, line, outcome, custom_id)"
        " select :b, n, n + 1, 'skipped', 'row-' || n from generate_series(2, 1500) as n",
        b=batch.id,
    )

    batching.ended(play, batch)

    assert [line["row"] for line in batching.manifest(play, batch)[1:]] == [*range(1, 1501)]


def test_a_batch_of_rows_that_all_had_jobs_before_ends_at_once(play: Stage) -> None:
    job = play.submit()
    batch = batching.committed(play, [{"outcome": "existing", "job_id": job.id}], existing=1)

    play.play(due(play))

    assert batching.now(play, batch).state == "completed"
    assert batching.manifest(play, batch)[1]["state"] == play.job(job).state


def test_a_batch_of_which_something_is_unfinished_is_left_alone(play: Stage) -> None:
    batch = batching.committed(play, [{}, {}])
    play.sql("update jobs set state = 'held', held_for = 'review', run_at = null where batch_row = 1")
    play.sql("update jobs set state = 'canceled', finished_at = now(), run_at = null where batch_row = 2")

    assert due(play) == []
    assert batching.now(play, batch).run_at is None


@pytest.mark.parametrize("state", ["paused", "running"])
def test_a_paused_or_canceled_batch_ends_once_nothing_is_unfinished(play: Stage, state: str) -> None:
    columns = {"paused_at": play.now()} if state == "paused" else {"canceled_at": play.now()}
    batch = done(play, state=state, **columns)

    ended = batching.ended(play, batch)

    assert (ended.paused_at, ended.canceled_at) == (None, columns.get("canceled_at"))


def test_a_draft_never_ends(play: Stage) -> None:
    batching.committed(play, [{"outcome": "good"}], state="draft", committed_at=None)

    assert due(play) == []


@pytest.mark.parametrize("point", ["taken", "writing", "written", "committed"])
def test_wherever_a_worker_is_killed_the_batch_ends_once(
    play: Stage, environment: dict[str, str], sandbox: Sandbox, point: str
) -> None:
    batch = done(play, webhook_url=HOOK)

    kill_at(batch, point, environment, sandbox)
    assert due(play) == [], "its lease keeps others off, or it has ended"
    lapse(play, batch)
    ended = batching.ended(play, batch)

    assert due(play) == []
    assert (ended.sequence, ended.crashes) == (1, 0)
    assert len(batching.events(play, batch)) == len(told(play)) == 1
    assert len(batching.manifest(play, batch)) == 4


def test_a_commit_whose_answer_is_lost_is_not_made_twice(play: Stage) -> None:
    batch = done(play, webhook_url=HOOK)
    mine = taken(play, batch)

    for _ in range(2):
        with play.ctx.engine.begin() as connection:
            assert completion._end(connection, mine, play.now())

    assert len(batching.events(play, batch)) == len(told(play)) == 1


def test_a_message_that_is_lost_or_comes_twice_changes_nothing(play: Stage) -> None:
    batch = done(play)
    lost = due(play)
    assert due(play) == []

    lapse(play, batch)
    sent = due(play)
    play.play([*sent, *sent, *lost])

    assert len(batching.events(play, batch)) == 1


class Slow(Bucket):
    """A bucket in which the first manifest lies until somebody else has come."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def put_stream(self, *given: Any) -> Any:
        if not self.begun.is_set():
            self.begun.set()
            assert self.go_on.wait(30)
        return super().put_stream(*given)


def test_of_two_workers_one_completes_the_batch(play: Stage) -> None:
    batch = done(play, webhook_url=HOOK)
    slow = Slow(play.ctx.settings)
    late = replace(play, ctx=replace(play.ctx, bucket=slow))
    first = threading.Thread(target=late.play, args=(due(play),))
    first.start()
    assert slow.begun.wait(30)

    lapse(play, batch)  # it was stopped for longer than its lease
    batching.ended(play, batch)
    before = batching.manifest(play, batch)
    play.sql("update batch_rows set custom_id = 'another'")  # that shows who wrote
    slow.go_on.set()
    first.join()

    assert batching.manifest(play, batch) == before
    assert len(batching.events(play, batch)) == len(told(play)) == 1


def test_a_late_worker_does_not_end_a_batch_whose_manifest_another_is_writing(play: Stage) -> None:
    batch = done(play)
    late, other = (taken(play, batch) for _ in range(2))

    with pytest.raises(ClaimLost), play.ctx.engine.begin() as connection:
        completion._end(connection, late, play.now())
    assert batching.events(play, batch) == []
    with play.ctx.engine.begin() as connection:
        assert completion._end(connection, other, play.now())


def test_a_job_that_is_made_again_while_its_batch_is_being_completed_keeps_it_open(play: Stage) -> None:
    batch = done(play)
    (message,) = due(play)
    with play.ctx.engine.begin() as connection:
        bulk.reopen(connection, batch.id)
        connection.execute(text("update jobs set state = 'queued', finished_at = null, run_at = now()"))

    play.play([message])
    running = batching.now(play, batch)
    assert (running.state, running.run_at, batching.events(play, batch)) == ("running", None, [])
    assert due(play) == []
    batching.finish(play, batch)

    assert batching.ended(play, batch).sequence == 1


def test_an_unfinished_job_alone_keeps_a_batch_from_its_end(play: Stage) -> None:
    batch = done(play)
    (message,) = due(play)
    play.sql("update jobs set state = 'queued', finished_at = null, run_at = now() where batch_row = 2")

    play.play([message])
    left = batching.now(play, batch)

    assert (left.state, left.run_at, left.claimed) == ("running", None, None)


def test_a_completion_waits_for_whoever_makes_a_job_again(play: Stage) -> None:
    batch = done(play)
    slow = Slow(play.ctx.settings)
    other = replace(play, ctx=replace(play.ctx, bucket=slow))
    at_work = threading.Thread(target=other.play, args=(due(play),))
    at_work.start()
    assert slow.begun.wait(30)
    waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"

    with play.ctx.engine.connect() as connection, connection.begin():
        connection.execute(text("select from batches for update"))
        connection.execute(text("update jobs set state = 'queued', finished_at = null, run_at = now()"))
        slow.go_on.set()
        play.drive(lambda: play.sql(waits)[0]["count"], lambda count: count == 1)
    at_work.join()

    assert batching.now(play, batch).state == "running"
    assert batching.events(play, batch) == []


def test_what_is_made_again_later_opens_the_batch_and_it_ends_again(play: Stage) -> None:
    batch = done(play, webhook_url=HOOK)
    batching.ended(play, batch)

    with play.ctx.engine.begin() as connection:
        bulk.reopen(connection, batch.id)
        connection.execute(text("update jobs set state = 'queued', finished_at = null, run_at = now()"))
    assert batching.now(play, batch).state == "running"
    batching.finish(play, batch)

    assert batching.ended(play, batch).sequence == 2
    assert [event["sequence"] for event in batching.events(play, batch)] == [1, 2]
    assert len(told(play)) == 2


def test_while_the_bucket_is_away_the_batch_runs_on_and_is_tried_again(play: Stage) -> None:
    batch = done(play)

    for _ in range(5):
        without_bucket(play).play(due(play))
        waits = batching.now(play, batch)
        assert (waits.state, waits.claimed, waits.crashes) == ("running", None, 0)
        assert waits.run_at is not None
        assert timedelta(0) < waits.run_at - play.now() < 2 * timeouts.MANIFEST_AGAIN
        lapse(play, batch)

    assert batching.ended(play, batch).sequence == 1


def test_a_batch_that_kills_workers_is_tried_once_in_six_hours(play: Stage, written: Any) -> None:
    batch = done(play)
    for _ in range(timeouts.CRASHES):
        (message,) = due(play)
        with play.ctx.engine.begin() as connection:
            assert completion.claims.take(connection, Batch, message.numbers, completion._LEASE)
        lapse(play, batch)

    (message,) = due(play)
    with play.ctx.engine.begin() as connection:
        completion.claims.take(connection, Batch, message.numbers, completion._LEASE)
    taken = batching.now(play, batch)

    assert taken.crashes == timeouts.CRASHES
    assert taken.run_at is not None
    assert taken.run_at - play.now() > timedelta(hours=5)
    assert "kills workers" in written()


def test_messages_that_could_not_be_sent_are_given_back_to_batches(play: Stage) -> None:
    batch = done(play)
    messages = due(play)

    with play.ctx.engine.begin() as connection:
        tick.give_back(connection, messages)

    assert batching.now(play, batch).claimed is None
    assert [message.task for message in due(play)] == ["noria.complete"]
