"""A batch in people's hands: paused, resumed, canceled, retried; whatever its jobs do meanwhile."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import batching
import pytest
from pytest_httpserver import HTTPServer
from serving import eventually
from sqlalchemy import text
from stage import Stage, stage

from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import running
from worker import moves
from worker.batches import control
from worker.batches.control import Controlled
from worker.errors import Conflict, NotFound
from worker.jobs import submission
from worker.moves.bulk import AGAIN
from worker.states import Move, State
from worker.tables import Job

ROOM = 100_000
WAITS = "select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
MODEL = "wan2.5-t2v-preview"


def batch_of(play: Stage, *jobs: Job, state: str = "running") -> uuid.UUID:
    """A batch of the stage's project, with these jobs."""
    with play.ctx.engine.begin() as connection:
        made = batching.make_batch(connection, play.project.id, state)
        batching.put(connection, made, *(job.id for job in jobs))
    return made


def filled(play: Stage, jobs: int, state: str = "queued", **columns: Any) -> uuid.UUID:
    """A batch with so many jobs in one state."""
    made = batch_of(play)
    with play.ctx.engine.begin() as connection:
        batching.fill(connection, made, jobs, state, **columns)
    return made


def act(play: Stage, what: Callable[..., Controlled], batch: uuid.UUID) -> Controlled:
    return what(play.ctx.engine, play.project.id, batch)


def retry(play: Stage, batch: uuid.UUID, states: frozenset[State] = AGAIN, room: int = ROOM) -> dict[str, int]:
    """How many jobs fared how."""
    done = control.retry_failed(play.ctx.engine, play.project.id, batch, states, room)
    return dict(Counter(fate.outcome for fate in done.fates.values()))


def states(play: Stage, batch: uuid.UUID) -> dict[str, int]:
    rows = play.sql("select state, count(*) as n from jobs where batch_id = :batch group by state", batch=batch)
    return {row["state"]: row["n"] for row in rows}


def row(play: Stage, batch: uuid.UUID) -> Any:
    return play.sql("select * from batches where id = :batch", batch=batch)[0]


def reserved(play: Stage) -> int:
    """Micro-CNY that are reserved and not given back."""
    (found,) = play.sql("select coalesce(sum(micros), 0) as micros from ledger where entry in ('reserve', 'release')")
    return int(found["micros"])


def test_a_paused_batch_is_out_of_the_line_and_comes_back_to_its_old_place(play: Stage) -> None:
    jobs = [play.submit() for _ in range(3)]
    batch = batch_of(play, *jobs)
    before = play.job(jobs[0]).rank_at

    paused = act(play, control.pause, batch)

    assert (paused.batch.state, len(paused.moved)) == ("paused", 3)
    assert play.tick() == []
    held = play.job(jobs[0])
    assert (held.state, held.held_for, held.held_from) == ("held", "batch", "queued")
    assert play.document(jobs[0])["waiting_on"]["detail"] == "its batch is paused"

    resumed = act(play, control.resume, batch)

    assert (resumed.batch.state, resumed.batch.paused_at, len(resumed.moved)) == ("running", None, 3)
    assert play.job(jobs[0]).rank_at == before
    assert all(play.until(job).state == State.SUCCEEDED for job in jobs)
    assert play.states(jobs[0])[:3] == ["queued", "held", "queued"]


def test_what_has_a_slot_and_is_not_sent_is_held_too_and_gives_its_slot_back(play: Stage) -> None:
    job = play.submit()
    batch = batch_of(play, job)
    messages = play.tick()

    act(play, control.pause, batch)
    play.play(messages)

    held = play.job(job)
    assert (held.state, held.lane_id, held.account) == ("held", None, None)
    assert play.attempts(job) == []
    act(play, control.resume, batch)
    assert play.until(job).state == State.SUCCEEDED


def test_what_is_with_the_provider_goes_on_while_its_batch_is_paused(play: Stage) -> None:
    job = play.until(play.submit(), State.RUNNING)
    batch = batch_of(play, job)

    paused = act(play, control.pause, batch)

    assert (paused.batch.state, paused.moved) == ("paused", [])
    assert play.until(job).state == State.SUCCEEDED


def test_a_job_that_a_worker_is_about_to_send_is_left_to_it(play: Stage) -> None:
    job = play.submit()
    batch = batch_of(play, job)
    _, step, _ = play.begin(job)

    act(play, control.pause, batch)

    assert play.job(job).state == State.ADMITTED
    step.close()  # type: ignore[attr-defined]


def test_a_job_that_comes_back_to_the_line_of_a_paused_batch_is_passed_by(play: Stage) -> None:
    job = play.submit()
    batch = batch_of(play, job)
    taken = play.take(job)
    act(play, control.pause, batch)
    with play.ctx.engine.begin() as connection:
        moves.record(connection, taken, Move(State.QUEUED, "throttled"), play.now())
    other = play.submit()

    assert play.until(other).state == State.SUCCEEDED

    assert play.job(job).state == State.QUEUED
    assert play.document(job)["waiting_on"] == {
        "code": "paused", "detail": "its batch is paused", "until": None, "position": None
    }  # fmt: skip
    act(play, control.resume, batch)
    assert play.until(job).state == State.SUCCEEDED


def test_a_job_in_parts_that_was_made_again_is_passed_by_too(play: Stage) -> None:
    job = play.submit("speech", "qwen3-tts-flash", input={"text": "One. Two.", "voice": "Cherry"})
    batch = batch_of(play, job, state="paused")

    assert play.tick() == []

    act(play, control.resume, batch)
    assert [claim.id for message in play.tick() for claim in message.claims] == [job.id]


def test_paused_twice_is_paused_and_resumed_twice_runs(play: Stage) -> None:
    batch = filled(play, 2)

    first, again = act(play, control.pause, batch), act(play, control.pause, batch)

    assert again.batch.paused_at == first.batch.paused_at
    assert again.moved == []
    act(play, control.resume, batch)
    assert act(play, control.resume, batch).moved == []
    assert row(play, batch)["state"] == "running"
    assert states(play, batch) == {"queued": 2}


@pytest.mark.parametrize("what", [control.pause, control.resume])
def test_what_broke_off_halfway_is_ended_by_the_same_request(play: Stage, what: Callable[..., Controlled]) -> None:
    batch = filled(play, 4)
    play.sql("update batches set state = 'paused', paused_at = now()")
    play.sql(
        "update jobs set state = 'held', held_for = 'batch', held_from = 'queued', run_at = null where batch_row < 3"
    )

    assert play.tick() == []  # nothing is sent meanwhile
    act(play, what, batch)

    assert states(play, batch) == ({"held": 4} if what is control.pause else {"queued": 4})


def test_a_canceled_batch_ends_unpaid_what_was_not_sent_and_asks_for_the_rest(play: Stage) -> None:
    play.sandbox.set(queue_seconds=30)
    sent = play.until(play.submit(), State.RUNNING)
    waiting, parked = play.submit(), play.submit()
    batch = batch_of(play, sent, waiting, parked)
    play.sql(
        "update jobs set state = 'held', held_for = 'budget', held_from = 'queued', run_at = null where id = :id",
        id=parked.id,
    )

    done = act(play, control.cancel, batch)

    assert set(done.moved) == {waiting.id, parked.id}
    assert play.ledger(waiting) == [("reserve", 1_500_000), ("release", -1_500_000)]
    assert play.job(sent).cancel_requested
    assert play.until(sent).state == State.CANCELED
    assert reserved(play) == 0
    first = row(play, batch)["canceled_at"]
    assert first is not None
    act(play, control.cancel, batch)
    assert row(play, batch)["canceled_at"] == first


def test_a_paused_batch_that_is_canceled_holds_nothing_any_more(play: Stage) -> None:
    batch = filled(play, 3)
    act(play, control.pause, batch)

    done = act(play, control.cancel, batch)

    assert (done.batch.state, done.batch.paused_at) == ("running", None)
    assert states(play, batch) == {"canceled": 3}
    assert reserved(play) == 0


def test_a_draft_and_a_batch_that_is_complete_have_nothing_to_stop(play: Stage) -> None:
    draft, complete = batch_of(play, state="draft"), batch_of(play, state="completed")

    for what in (control.pause, control.resume, control.cancel):
        with pytest.raises(Conflict, match="draft"):
            act(play, what, draft)
    with pytest.raises(Conflict, match="complete"):
        act(play, control.pause, complete)
    for what in (control.resume, control.cancel):
        assert act(play, what, complete).batch.state == "completed"
    assert row(play, complete)["canceled_at"] is None


def test_anothers_batch_is_not_found(play: Stage) -> None:
    batch = filled(play, 1)

    for what in (control.pause, control.resume, control.cancel):
        with pytest.raises(NotFound):
            what(play.ctx.engine, uuid.uuid4(), batch)
    with pytest.raises(NotFound):
        control.retry_failed(play.ctx.engine, uuid.uuid4(), batch, AGAIN, ROOM)
    assert (states(play, batch), row(play, batch)["state"]) == ({"queued": 1}, "running")


def test_what_failed_is_made_again_and_opens_the_batch(play: Stage) -> None:
    batch = filled(play, 2, "failed")
    with play.ctx.engine.begin() as connection:
        for state in ("expired", "canceled", "rejected", "succeeded"):
            batching.fill(connection, batch, 1, state)
    play.sql("update batches set state = 'completed', completed_at = now(), canceled_at = now(), claimed = 'taken'")
    with play.ctx.engine.connect() as connection:
        foreseen = control.foresee_retry(connection, play.project.id, batch, AGAIN, ROOM).document("retry", True)
    before = states(play, batch)

    outcome = retry(play, batch)

    assert (foreseen.outcomes, foreseen.cost.estimated) == ({"retried": 4}, "6.00")
    assert before == {"failed": 2, "expired": 1, "canceled": 1, "rejected": 1, "succeeded": 1}
    assert outcome == {"retried": 4}
    assert states(play, batch) == {"queued": 4, "rejected": 1, "succeeded": 1}
    assert reserved(play) == 4 * 1_500_000
    opened = row(play, batch)
    assert (opened["state"], opened["claim"], opened["claimed"], opened["canceled_at"]) == ("running", 1, None, None)
    assert opened["completed_at"] is not None
    assert retry(play, batch) == {}


def test_only_the_named_ends_are_made_again_and_no_more_than_there_is_room_for(play: Stage) -> None:
    batch = filled(play, 3, "failed")
    with play.ctx.engine.begin() as connection:
        batching.fill(connection, batch, 1, "canceled")

    assert retry(play, batch, frozenset({State.CANCELED})) == {"retried": 1}
    assert retry(play, batch, room=2) == {"retried": 2, "too_many_waiting": 1}
    assert states(play, batch) == {"queued": 3, "failed": 1}


def test_what_may_be_paid_for_and_what_lost_its_file_is_left_out_and_named(play: Stage) -> None:
    batch = filled(play, 3, "failed")
    lost, gone, _ = play.sql("select id from jobs where batch_id = :batch order by id", batch=batch)
    play.sql(
        "insert into attempts (job_id, project_id, number, owner, account, region, model, request_hash)"
        " select id, project_id, 1, 'o', 'a', 'r', model, '' from jobs where id = :id",
        id=lost["id"],
    )
    key = f"{play.project.id}/files/gone.mp3"
    play.sql(
        "update jobs set input = input || jsonb_build_object('audio_url', cast(:key as text)) where id = :id",
        id=gone["id"],
        key=key,
    )
    with play.ctx.engine.connect() as connection:
        said = control.foresee_retry(connection, play.project.id, batch, AGAIN, ROOM).document("retry", True)

    assert retry(play, batch) == {"retried": 1, "attempt_open": 1, "no_such_file": 1} == said.outcomes
    assert [(each.id, each.code) for each in said.refused] == [
        (lost["id"], "attempt_open"), (gone["id"], "no_such_file")
    ]  # fmt: skip


def test_nothing_is_made_again_in_a_batch_that_is_paused_or_a_draft(play: Stage) -> None:
    batch = filled(play, 1, "failed")
    act(play, control.pause, batch)

    with pytest.raises(Conflict, match="resume it"):
        retry(play, batch)
    with pytest.raises(Conflict, match="commit it"):
        retry(play, batch_of(play, state="draft"))
    assert states(play, batch) == {"failed": 1}


def test_one_job_that_is_made_again_opens_its_batch_too(play: Stage) -> None:
    batch = filled(play, 1, "failed")
    play.sql("update batches set state = 'completed', completed_at = now(), run_at = now()")
    (job,) = play.sql("select id from jobs")

    with play.ctx.engine.begin() as connection:
        submission.retry(connection, play.project.id, job["id"], play.now())

    assert (row(play, batch)["state"], row(play, batch)["run_at"]) == ("running", None)


def test_a_job_that_fails_just_before_it_is_made_again_opens_its_batch(play: Stage) -> None:
    batch = filled(play, 1)
    (job,) = play.sql("select id from jobs")

    def again() -> None:
        with play.ctx.engine.begin() as connection:
            submission.retry(connection, play.project.id, job["id"], play.now())

    with play.ctx.engine.connect() as other:
        other.execute(text("update jobs set state = 'failed', finished_at = now(), run_at = null"))
        other.execute(text("update batches set state = 'completed', completed_at = now()"))
        turn = threading.Thread(target=again)
        turn.start()
        eventually(lambda: play.sql(WAITS))
        other.commit()
        turn.join()

    assert (states(play, batch), row(play, batch)["state"]) == ({"queued": 1}, "running")


def test_receivers_are_told_of_the_moves_that_they_asked_for(play: Stage, httpserver: HTTPServer) -> None:
    url = httpserver.url_for("/hook")
    told = [play.submit(webhook_url=url, webhook_events=["job.held", "job.queued"]), play.submit(webhook_url=url)]
    play.sql("delete from deliveries")
    batch = batch_of(play, *told)

    act(play, control.pause, batch)
    act(play, control.resume, batch)
    act(play, control.cancel, batch)

    sent = [(delivery.job_id, delivery.body[9:21]) for delivery in play.deliveries()]
    assert Counter(sent) == {
        (told[0].id, 'job.held","t'): 1,
        (told[0].id, 'job.queued",'): 1,
        (told[1].id, "job.canceled"): 1,
    }


def test_a_batch_is_canceled_while_workers_move_its_jobs_and_nothing_is_lost(environment: dict[str, str]) -> None:
    with (
        running(Options(run_seconds=0.05, queue_seconds=0, limits={"*": Limits(rps=1000)})) as sandbox,
        stage(environment, sandbox, limits={MODEL: {"concurrency": 40, "rps": 500}}) as play,
    ):
        batch = filled(play, 300)
        stop = threading.Event()
        failures: list[BaseException] = []

        def work() -> None:
            while not stop.is_set():
                try:
                    play.play(play.tick())
                except BaseException as error:  # noqa: BLE001 - the test fails with it
                    failures.append(error)
                    return

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        try:
            play.drive(lambda: states(play, batch).get("succeeded", 0), lambda some: some >= 20)
            turns = [threading.Thread(target=act, args=(play, what, batch)) for what in (control.pause, control.resume)]
            for turn in turns:
                turn.start()
            for turn in turns:
                turn.join()
            is_held = play.sql("select id from jobs where held_for = 'batch'")
            assert row(play, batch)["state"] == "paused" or not is_held
            act(play, control.cancel, batch)
        finally:
            stop.set()
            for worker in workers:
                worker.join()
        ended = play.drive(lambda: states(play, batch), lambda found: set(found) <= {"succeeded", "canceled"})

        assert failures == []
        assert sum(ended.values()) == 300
        assert ended["canceled"] > 0
        assert reserved(play) == 0
        settled = play.sql("select sum(micros) as micros from ledger where entry = 'settle'")[0]["micros"]
        assert settled == sandbox.ledger()["totals"]["billed_micros"] == ended["succeeded"] * 1_500_000
        gaps = play.sql(
            "select id from jobs where sequence <> (select count(*) from events where job_id = jobs.id)"
            " or sequence <> (select max(sequence) from events where job_id = jobs.id)"
        )
        assert gaps == []


def test_a_cancel_that_waits_in_a_circle_with_another_is_tried_again(play: Stage) -> None:
    batch = filled(play, 2)
    first, last = (found["id"] for found in play.sql("select id from jobs order by id"))
    lock = text("update jobs set polls = polls + 1 where id = :id")

    with play.ctx.engine.connect() as other:
        other.execute(lock, {"id": last})
        turn = threading.Thread(target=act, args=(play, control.cancel, batch))
        turn.start()
        eventually(lambda: play.sql(WAITS))
        other.execute(lock, {"id": first})  # the cancel, which has waited for longer, gives way
        other.commit()
        turn.join()

    assert states(play, batch) == {"canceled": 2}
    assert play.sql("select distinct polls from jobs") == [{"polls": 1}]
    assert reserved(play) == 0
