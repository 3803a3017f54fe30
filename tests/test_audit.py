"""Each promise, broken on purpose in a database: the audit says which, and of which job."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import batching
import pytest
from sqlalchemy import text
from stage import CLIP, Stage

from ops import audit
from ops.audit import Finding
from tests.chaos import witnesses as told
from tests.chaos.witnesses import Witnesses
from worker import storage
from worker.errors import ClaimLost
from worker.jobs import review
from worker.schedules import fire
from worker.schedules import plan as plans
from worker.states import State
from worker.tables import Batch, Job, Schedule

HOOK = "http://127.0.0.1:9/hooks"  # nobody listens there


BREACHES = (
    ("I1", "delete from events where sequence = 1"),
    ("I3", "update jobs set task_id = 'another'"),
    ("I4", "update jobs set state = 'running', finished_at = null, run_at = null"),
    ("I4", "update jobs set state = 'running', finished_at = null, run_at = now() + interval '2 days'"),
    ("I5", "delete from outputs"),
    (
        "I5",
        "update jobs set state = 'copying', finished_at = null, run_at = now(),"
        " links_expire_at = now() - interval '2 h'",
    ),
    ("I5", "update jobs set state = 'expired'"),
    ("I7", "delete from deliveries"),
    ("I8", "update lanes set concurrency = 0; update jobs set state = 'running', finished_at = null"),
    ("I9", "update events set claim = 999 where sequence = 3"),
    ("I10", "delete from events where sequence = 4"),
    ("I10", "update events set entered = 'copying' where sequence = 2"),
    ("I10", "update jobs set sequence = sequence + 1"),
    ("I10", "update jobs set state = 'failed'"),
    ("I13", "update jobs set state = 'canceled'; delete from events where entered = 'submitting'"),
    ("I14", "update jobs set state = 'running', finished_at = null, run_at = now() - interval '1 h'"),
    ("I14", "update deliveries set run_at = now() - interval '1 h'"),
    ("M", "update jobs set estimate = estimate + 1"),
    ("M", "delete from ledger where entry = 'release'"),
    ("M", "update ledger set micros = micros + 1 where entry = 'settle'"),
    ("M", "update attempts set closed_at = null"),
)

FAMILY_BREACHES = (
    ("C", "update jobs set state = 'queued', finished_at = null where mode = 'parent'"),
    ("C", "update jobs set state = 'running', finished_at = null, run_at = now() where place = 0"),
    (
        "C",
        "update jobs set state = 'gathering', finished_at = null where mode = 'parent';"
        " update jobs set finished_at = now() - interval '3 min' where place is not null",
    ),
    ("C", "update jobs set place = 7 where place = 1"),
    ("C", "update jobs set round = 2 where place is not null"),
    (
        "I4",
        "update jobs set state = 'gathering', finished_at = null where mode = 'parent';"
        " update jobs set parent_id = null, place = null where place is not null",
    ),
    ("I11", "update attempts set sent_at = (select min(sent_at) from attempts)"),
    ("M", "update jobs set cost = cost + 1 where mode = 'parent'"),
    ("M", "update ledger set job_id = (select id from jobs where place = 0) where entry = 'settle'"),
    ("M", "delete from ledger where entry = 'settle'"),
    ("M", "update ledger set micros = micros + 1 where entry = 'settle'"),
    ("M", "update attempts set billed = 'no'"),
)
BATCH_BREACHES = (
    ("I7", "delete from deliveries where job_id is null"),
    ("I10", "update batches set sequence = sequence + 1"),
    ("I10", "update jobs set state = 'running', finished_at = null, run_at = now()"),
    (
        "I14",
        "update batches set state = 'running', sequence = 0; delete from deliveries; delete from events"
        " where batch_id is not null; update jobs set finished_at = finished_at - interval '1 h'",
    ),
)
# of a job that was rejected, and of its second take, which awaits its review
REVIEW_BREACHES = (
    ("I4", "update jobs set state = 'running', run_at = null where take = 2"),
    ("I5", "delete from outputs where job_id = (select id from jobs where take = 1)"),
    ("I5", "delete from outputs where job_id = (select id from jobs where take = 2)"),
    ("I7", "delete from deliveries where body like '%job.awaiting_review%'"),
    ("I7", "delete from deliveries where body like '%job.rejected%'"),
    ("M", "delete from ledger where entry = 'release'"),
    ("R", "update jobs set review = null where take = 1"),
    ("R", "update jobs set review = 'approved' where take = 2"),
    ("R", "update jobs set state = 'succeeded', finished_at = now(), review = null where take = 1"),
    ("R", "update jobs set state = 'failed' where take = 1"),
    ("R", "update jobs set take = 3 where take = 2"),
)
CLOCK_BREACHES = (
    ("S", "update schedules set next_at = now() - interval '1 h'"),
    ("S", "update runs set job_id = null"),
    ("S", "update runs set outcome = 'submitted', job_id = (select id from jobs limit 1)"),
)


@dataclass
class Heard:
    """A receiver that kept nothing yet."""

    heard: Counter[str] = field(default_factory=Counter)
    forged: int = 0


@pytest.fixture
def done(play: Stage) -> Job:
    """A job that ended well."""
    return play.until(play.submit(webhook_url=HOOK))


@pytest.fixture
def family(play: Stage) -> Job:
    """A narration of three segments that ended well."""
    verses = [{"text": f"Verse {n} of the water wheel."} for n in range(3)]
    return play.until(play.submit("speech", "qwen3-tts-flash", input={"paragraphs": verses}))


@pytest.fixture
def retaken(play: Stage) -> Job:
    """The second take of a job that was rejected, awaiting its review."""
    job = play.until(play.submit(webhook_url=HOOK, review="required"), State.AWAITING_REVIEW)
    with play.ctx.engine.begin() as connection:
        rejected = review.reject(connection, play.project.id, job.id, "no", play.now())
        take = review.reroll(connection, play.ctx.catalog, play.ctx.settings, rejected, {}, play.now())
    return play.until(take, State.AWAITING_REVIEW)


@pytest.fixture
def schedule(play: Stage) -> Schedule:
    """One that was made three minutes ago, and has fired for each minute since."""
    template = {"kind": "text-to-video", "model": "wan2.5-t2v-preview", "input": CLIP}
    plan = plans.Plan("each minute", "* * * * *", "UTC", template, overlap="queue")
    with play.ctx.engine.begin() as connection:
        made, _ = plans.make(connection, play.project, plan, 10, play.now() - timedelta(minutes=3))
    fire.fire_due(play.ctx.engine, play.ctx.catalog, play.ctx.settings)
    return made


def found(play: Stage, witnesses: Witnesses | None = None) -> list[Finding]:
    return told.audit(play.ctx.engine, witnesses) if witnesses else audit.audit(play.ctx.engine)


def breaches(play: Stage, witnesses: Witnesses | None = None) -> set[str]:
    return {finding.invariant for finding in found(play, witnesses)}


def broken_by(play: Stage, harm: str) -> set[str]:
    """What the audit says of the rows after some statements, which are taken back."""
    with play.ctx.engine.connect() as connection:
        for statement in harm.split("; "):
            connection.execute(text(statement))
        return {finding.invariant for finding in audit.look(connection)}


def everyone(play: Stage) -> Witnesses:
    return Witnesses(
        ledger=play.sandbox.ledger(), bucket=play.ctx.bucket, reads_bytes=True, receiver=Heard(), is_at_rest=True
    )


def test_a_life_in_which_nothing_went_wrong_leaves_nothing_to_say(play: Stage, done: Job) -> None:
    waiting = play.submit(input={**CLIP, "prompt": "still waiting"})

    assert found(play, replace(everyone(play), is_at_rest=False)) == []
    assert {finding.job for finding in found(play, everyone(play))} == {str(done.id), str(waiting.id)}


def test_lost_answers_and_failed_tasks_that_were_put_right_are_no_findings(play: Stage) -> None:
    play.sandbox.fault(where="create", what="lost_answer", times=1)
    play.sandbox.fault(where="create", what="reset", times=1)
    play.sandbox.fault(where="create", what="task_fails", times=1)
    for n in range(4):
        play.until(play.submit(input={**CLIP, "prompt": f"clip {n}"}))

    assert found(play, everyone(play)) == []


def test_every_promise_that_the_rows_can_break_is_found_broken(play: Stage, done: Job) -> None:
    missed = [(invariant, harm) for invariant, harm in BREACHES if invariant not in broken_by(play, harm)]

    assert missed == []


def test_a_family_in_which_nothing_went_wrong_leaves_nothing_to_say(play: Stage, family: Job) -> None:
    assert found(play, everyone(play)) == []


def test_every_promise_about_parents_that_the_rows_can_break_is_found_broken(play: Stage, family: Job) -> None:
    missed = [(invariant, harm) for invariant, harm in FAMILY_BREACHES if invariant not in broken_by(play, harm)]

    assert missed == []


@pytest.fixture
def campaign(play: Stage) -> Batch:
    """A batch of two clips that is complete."""
    return batching.ended(play, batching.committed(play, [{}, {}], webhook_url=HOOK))


def test_a_batch_in_which_nothing_went_wrong_leaves_nothing_to_say(play: Stage, campaign: Batch) -> None:
    assert found(play, replace(everyone(play), is_at_rest=False)) == []


def test_every_promise_about_batches_that_the_rows_can_break_is_found_broken(play: Stage, campaign: Batch) -> None:
    missed = [(invariant, harm) for invariant, harm in BATCH_BREACHES if invariant not in broken_by(play, harm)]

    assert missed == []


def test_every_promise_about_reviews_that_the_rows_can_break_is_found_broken(play: Stage, retaken: Job) -> None:
    assert found(play) == []

    missed = [(invariant, harm) for invariant, harm in REVIEW_BREACHES if invariant not in broken_by(play, harm)]

    assert missed == []


def test_a_parent_that_waits_for_a_part_needs_no_time_of_its_own(play: Stage) -> None:
    play.sql("update lanes set concurrency = 0")
    job = play.submit("speech", "qwen3-tts-flash", input={"text": "Nobody speaks yet."})
    play.drive(lambda: play.sql("select 1 from jobs where parent_id = :id", id=job.id), bool)
    assert play.job(job).run_at is None

    assert found(play) == []


def test_a_call_that_is_paid_for_is_an_answered_attempts_or_one_whose_answer_was_lost(play: Stage, family: Job) -> None:
    books = play.sandbox.ledger()
    books["tasks"].append({**books["tasks"][0], "request_id": "another"})
    assert breaches(play, Witnesses(ledger=books)) == {"I2"}

    play.sql(
        "insert into attempts (job_id, project_id, number, owner, account, region, model, request_hash, outcome,"
        " billed, closed_at, sent_at) select job_id, project_id, 2, owner, account, region, model, request_hash,"
        " 'unknown', 'unknown', now(), now() - interval '2 h' from attempts"
    )

    assert {finding.invariant for finding in found(play, Witnesses(ledger=books))} == {"M"}, "they are in no ledger yet"


def test_a_call_that_was_made_again_and_is_answered_late_after_all_is_no_finding(play: Stage) -> None:
    job = play.submit("text", "qwen-flash", input={"prompt": "What is it?", "max_tokens": 9})
    taken, step, clock = play.begin(job)
    taken = play.ctx.record(taken, next(step), clock)
    answered = step.send(taken)  # by a worker that is cut off from the database now
    play.lapse(job)
    assert play.until(job).state == "succeeded"
    with pytest.raises(ClaimLost):
        play.ctx.record(taken, answered, clock)

    assert {(row.number, row.billed) for row in play.attempts(job)} == {(1, "yes"), (2, "yes")}
    assert breaches(play, Witnesses(ledger=play.sandbox.ledger())) == set()


def test_a_batch_that_is_paid_for_and_no_jobs_is_found_and_so_is_a_second_one(play: Stage) -> None:
    play.sandbox.set(batch_validating_seconds=0, batch_run_seconds=0, batch_finalizing_seconds=0)
    documents = [{"text": "It says little."}]
    job = play.submit("summary", "qwen-flash", input={"documents": documents, "mode": "batch"})
    assert play.until(job).state == "succeeded"
    books = play.sandbox.ledger()
    assert breaches(play, Witnesses(ledger=books)) == set()

    books["batches"].append({**books["batches"][0], "batch_id": "second"})
    assert breaches(play, Witnesses(ledger=books)) == {"I2"}
    books["batches"][1]["ds_name"] = "nobody"

    assert breaches(play, Witnesses(ledger=books)) == {"I2"}


def test_what_a_parent_was_made_of_may_stay_in_the_bucket_and_another_object_may_not(play: Stage, family: Job) -> None:
    stem = f"{family.project_id}/2026/01/01/{family.id}"
    for name in ("work/lines.jsonl", "9-audio.wav"):
        play.ctx.bucket.put_stream(f"{stem}/{name}", [b"x"], "text/plain", storage.Expected())

    (finding,) = found(play, everyone(play))

    assert (finding.invariant, finding.what.split()[0].rpartition("/")[2]) == ("I6", "9-audio.wav")


def test_every_fire_time_has_one_run_and_a_missing_one_is_found(play: Stage, schedule: Schedule) -> None:
    witnesses = Witnesses(unpaused=[str(schedule.id)])
    assert found(play, witnesses) == []

    missed = [(invariant, harm) for invariant, harm in CLOCK_BREACHES if invariant not in broken_by(play, harm)]
    assert missed == []
    play.sql("delete from runs where fire_at = (select min(fire_at) from runs)")

    assert breaches(play, witnesses) == {"S"}


def test_a_finding_names_the_job_and_says_what_to_do(play: Stage, done: Job) -> None:
    play.sql("delete from outputs")

    (finding,) = found(play)

    assert finding.job == str(done.id)
    assert finding.what
    assert finding.advice


def test_a_job_with_two_tasks_that_may_be_billed_is_found(play: Stage, done: Job) -> None:
    play.sql(
        "insert into attempts"
        " (job_id, project_id, number, owner, account, region, model, request_hash, task_id, outcome)"
        " select job_id, project_id, 2, owner, account, region, model, request_hash, 'second', 'accepted' from attempts"
    )

    assert "I2" in breaches(play)


def test_a_task_that_is_paid_for_and_no_jobs_is_found_in_the_providers_books(play: Stage, done: Job) -> None:
    play.sql("update attempts set task_id = 'forgotten'; update jobs set task_id = 'forgotten'")

    findings = [finding for finding in found(play, everyone(play)) if finding.invariant == "I2"]

    assert [finding.job for finding in findings] == [str(done.id)]


def test_a_task_that_is_still_being_looked_for_is_no_finding(play: Stage) -> None:
    play.sandbox.fault(where="create", what="lost_answer", times=1)
    job = play.until(play.submit(), "uncertain")  # type: ignore[arg-type]
    play.drive(play.sandbox.ledger, lambda ledger: ledger["totals"]["billed_micros"] > 0)
    play.sql("update jobs set state = 'uncertain', task_id = null where id = :id", id=job.id)
    play.sql("update attempts set task_id = null, closed_at = null")

    assert "I2" not in breaches(play, everyone(play))


def test_an_output_that_another_jobs_task_made_is_found(play: Stage) -> None:
    first, second = (play.until(play.submit(input={**CLIP, "prompt": name})) for name in ("a fox", "an owl"))
    swapped = "case job_id when :first then cast(:second as uuid) else cast(:first as uuid) end"
    play.sql(f"update attempts set number = number + 10, job_id = {swapped}", first=first.id, second=second.id)

    said = [finding for finding in found(play, everyone(play)) if finding.invariant == "I3"]

    assert any("another prompt" in finding.what for finding in said)


def test_an_object_that_is_gone_or_changed_is_found(play: Stage, done: Job) -> None:
    (output,) = play.document(done)["outputs"]
    play.sql("update outputs set sha256 = 'other'")
    assert "I5" in breaches(play, everyone(play))

    play.sql("update outputs set sha256 = :right", right=output["sha256"])
    play.ctx.bucket.delete(output["key"])

    assert "I5" in breaches(play, everyone(play))
    assert "I5" in breaches(play, replace(everyone(play), reads_bytes=False))


def test_bytes_that_do_not_carry_the_id_of_their_jobs_task_are_found(play: Stage, done: Job) -> None:
    play.sql("update attempts set task_id = 'another'; ")
    play.sql("update jobs set task_id = 'another'")

    assert "I3" in breaches(play, Witnesses(bucket=play.ctx.bucket, reads_bytes=True))


def test_an_object_that_no_row_knows_is_found_unless_its_job_is_being_copied(play: Stage, done: Job) -> None:
    play.sql("delete from outputs")
    witnesses = Witnesses(bucket=play.ctx.bucket)
    assert "I6" in breaches(play, witnesses)

    play.sql("update jobs set state = 'copying', finished_at = null, run_at = now()")

    assert "I6" not in breaches(play, witnesses)


def test_a_delivery_that_its_receiver_never_got_is_found_and_so_is_a_forged_one(play: Stage, done: Job) -> None:
    play.sql("update deliveries set state = 'delivered', run_at = null")
    (event,) = (delivery.event_id for delivery in play.deliveries())
    heard = Heard()
    assert breaches(play, Witnesses(receiver=heard)) == {"I7"}

    heard.heard[f"evt_{event}"] += 1
    assert breaches(play, Witnesses(receiver=heard)) == set()

    heard.forged += 1
    assert breaches(play, Witnesses(receiver=heard)) == {"I7"}


def test_more_tasks_in_flight_or_queries_a_second_than_may_be_are_found(play: Stage, done: Job) -> None:
    ledger = play.sandbox.ledger()
    ledger["peaks"]["in_flight"]["account"] = {done.model: 99}
    assert breaches(play, Witnesses(ledger=ledger)) == {"I8"}

    ledger = play.sandbox.ledger()
    ledger["peaks"]["per_second"]["account"] = {"queries": 21}
    assert breaches(play, Witnesses(ledger=ledger)) == {"I11"}


def test_a_call_for_a_job_that_was_canceled_in_time_is_found_in_the_providers_books(play: Stage) -> None:
    job = play.submit(input={**CLIP, "prompt": "never to be made"})
    assert play.cancel(job) == "canceled"
    ledger = play.sandbox.ledger()
    assert breaches(play, Witnesses(ledger=ledger)) == set()

    ledger["creates"].append({"prompt": "never to be made"})

    assert breaches(play, Witnesses(ledger=ledger)) == {"I13"}


def test_a_submission_that_was_accepted_and_is_gone_or_was_made_twice_is_found(play: Stage) -> None:
    first = play.submit(custom_id="row-1")
    accepted = Witnesses(accepted={"row-1": str(first.id)})
    assert breaches(play, accepted) == set()

    assert breaches(play, Witnesses(accepted={"row-2": "0199e9d0-0000-7000-8000-000000000000"})) == {"I1"}
    play.submit(custom_id="row-1")

    assert breaches(play, accepted) == {"I1"}


def test_a_secret_in_a_log_is_found_and_is_not_repeated(play: Stage, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text('{"event": "sent", "key": "sk-do-not-write-me"}')

    findings = found(play, Witnesses(logs=[log], canaries=["sk-do-not-write-me"]))

    assert [finding.invariant for finding in findings] == ["I15"]
    assert "do-not-write-me" not in findings[0].what
