"""What a call cost is booked with its verdict, by its attempt, whatever became of the job; and what nobody knows stays
charged until somebody says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from stage import Stage, stage

from ops.audit import audit
from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from worker import keys
from worker.context import Clock
from worker.errors import ClaimLost, Conflict
from worker.jobs import operator, submission
from worker.jobs.operator import Action, Decision
from worker.states import Move, State
from worker.tables import Job

WORDS, PICTURE, CLIPS = "qwen-flash", "qwen-image-max", "wan2.5-t2v-preview"
ASKED = {"prompt": "Name three colours.", "max_tokens": 200}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0.1, queue_seconds=0, call_seconds=0, limits={"*": Limits(rps=100)})) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    with stage(environment, sandbox, limits={CLIPS: {"concurrency": 5, "rps": 100}}) as made:
        yield made


def question(play: Stage) -> Job:
    return play.submit("text", WORDS, input=ASKED)


def out(play: Stage, job: Job) -> tuple[Job, Any, Clock]:
    """The job as its create call goes out, and its step, which makes the call."""
    taken, step, clock = play.begin(job)
    return play.ctx.record(taken, next(step), clock), step, clock


def lapsed(play: Stage, job: Job, *states: State) -> Job:
    """The job, taken up by others once its lease has lapsed."""
    play.lapse(job)
    return play.until(job, *states)


def at_once(play: Stage, times: int = 12) -> None:
    """What is due, again and again, with no wait between."""
    for _ in range(times):
        play.play(play.tick())
        play.sql("update jobs set run_at = now() where state = 'queued'")


def charged(play: Stage, job: Job) -> int:
    return sum(micros for _, micros in play.ledger(job))


def settled(play: Stage, job: Job) -> list[int]:
    return [micros for entry, micros in play.ledger(job) if entry == "settle"]


def amiss(play: Stage) -> set[str]:
    """The promises that the audit finds broken."""
    return {finding.invariant for finding in audit(play.ctx.engine)}


def said(play: Stage, job: Job, billed: str) -> Job:
    decision = Decision(Action.GIVE_UP, "Ada", billed=billed)
    return operator.carry_out(play.ctx, play.job(job), operator.decide(play.ctx, play.job(job), decision))


# What nobody knows


def test_a_call_that_is_never_answered_is_made_five_times_in_all(play: Stage) -> None:
    play.sandbox.fault(where="create", what="lost_answer")
    job = question(play)

    at_once(play, 20)

    ended = play.job(job)
    assert play.sandbox.ledger()["totals"]["creates"] == 5
    assert (ended.state, ended.billed) == (State.FAILED, "unknown")
    assert ended.error is not None
    assert ended.error["message"].startswith("5 calls went without an answer")
    assert charged(play, job) == 5 * (job.estimate or 0)


def test_a_lost_call_whose_worker_died_is_one_of_the_five(play: Stage) -> None:
    play.sandbox.fault(where="create", what="lost_answer")
    job = question(play)
    _, step, _ = out(play, job)
    del step  # the worker is gone, and with it the answer, if there was one
    lapsed(play, job, State.QUEUED)

    at_once(play, 20)

    assert play.job(job).state == State.FAILED
    assert len(play.attempts(job)) == 5
    assert play.sandbox.ledger()["totals"]["creates"] == 4


def canceled_while_it_is_out(play: Stage) -> Job:
    job = question(play)
    begun, step, clock = out(play, job)
    assert play.cancel(job) == "requested"
    play.sandbox.fault(where="create", what="lost_answer", times=1)
    return play.ctx.record(begun, step.send(begun), clock)


def canceled_after_its_worker_died(play: Stage) -> Job:
    job = question(play)
    out(play, job)
    assert play.cancel(job) == "requested"
    return lapsed(play, job)


def lost(play: Stage) -> Job:
    """A job that waits to be called again, since a call's answer was lost."""
    play.sandbox.fault(where="create", what="lost_answer", times=1)
    job = question(play)
    play.play(play.tick())
    assert play.job(job).state == State.QUEUED
    play.sql("update jobs set run_at = now() where id = :id", id=job.id)
    return job


def canceled_while_it_waits_for_the_next_call(play: Stage) -> Job:
    job = lost(play)
    assert play.cancel(job) == "canceled"
    return play.job(job)


def canceled_before_the_next_call(play: Stage) -> Job:
    job = lost(play)
    taken = play.take(job)
    assert play.cancel(job) == "requested"
    step, clock = play.step(play.job(taken))
    return play.ctx.record(play.job(job), next(step), clock)


def canceled_as_the_next_call_begins(play: Stage) -> Job:
    job = lost(play)
    taken, step, clock = play.begin(job)
    assert play.cancel(job) == "requested"
    return play.ctx.record(taken, next(step), clock)


def refused_at_the_next_call(play: Stage) -> Job:
    job = lost(play)
    play.sandbox.fault(where="create", what="error", code="DataInspectionFailed", times=1)
    return play.until(job)


ENDS = (
    canceled_while_it_is_out,
    canceled_after_its_worker_died,
    canceled_while_it_waits_for_the_next_call,
    canceled_before_the_next_call,
    canceled_as_the_next_call_begins,
    refused_at_the_next_call,
)


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
@pytest.mark.parametrize("billed", ["yes", "no"])
def test_a_call_that_may_be_billed_is_charged_until_a_person_says_whether_it_was(
    play: Stage, end: Callable[[Stage], Job], billed: str
) -> None:
    ended = end(play)
    before = (ended.state in (State.CANCELED, State.FAILED), ended.billed, charged(play, ended))
    assert audit(play.ctx.engine) == []

    after = said(play, ended, billed)

    assert before == (True, "unknown", ended.estimate)
    assert (after.state, after.billed) == (ended.state, billed)
    assert charged(play, ended) == (ended.estimate if billed == "yes" else 0)
    assert audit(play.ctx.engine) == []
    with pytest.raises(Conflict, match="is known"):
        said(play, ended, billed)


def test_a_canceled_job_says_that_its_call_may_be_billed(play: Stage) -> None:
    job = canceled_while_it_is_out(play)

    whys = [row["why"] for row in play.sql("select why from events where job_id = :id order by id", id=job.id)]
    assert whys[-1] == "canceled; a call for it went without an answer, and may be billed"
    assert play.document(job)["cost"]["billed"] == "unknown"


def test_five_calls_without_an_answer_are_said_to_have_cost_nothing_in_one_word(play: Stage) -> None:
    play.sandbox.fault(where="create", what="lost_answer")
    job = question(play)
    at_once(play, 20)

    said(play, job, "no")

    assert charged(play, job) == 0
    assert {attempt.billed for attempt in play.attempts(job)} == {"no"}


def test_of_a_job_whose_last_call_is_paid_for_nobody_says_that_it_cost_nothing(play: Stage) -> None:
    job = question(play)
    out(play, job)  # and its worker dies
    lapsed(play, job, State.QUEUED)
    play.sql("update jobs set run_at = now()")
    ended = play.until(job)
    assert {attempt.billed for attempt in play.attempts(job)} == {"unknown", "yes"}

    with pytest.raises(Conflict, match="is known"):
        said(play, ended, "no")


# What comes late


def test_what_a_late_answer_cost_is_booked_though_the_claim_is_lost(play: Stage) -> None:
    job = play.submit("text-to-image", PICTURE, input={"prompt": "a shop"})
    begun, step, clock = out(play, job)
    answer = step.send(begun)
    lapsed(play, job, State.UNCERTAIN)

    with pytest.raises(ClaimLost):
        play.ctx.record(begun, answer, clock)

    assert settled(play, job) == [500_000]
    assert play.job(job).billed == "yes"
    assert play.until(job).state == State.SUCCEEDED
    assert settled(play, job) == [500_000]


def test_what_was_charged_for_a_lost_answer_is_set_right_when_it_comes(play: Stage) -> None:
    job = question(play)
    begun, step, clock = out(play, job)
    answer = step.send(begun)
    lapsed(play, job, State.QUEUED)
    assert settled(play, job) == [job.estimate]

    with pytest.raises(ClaimLost):
        play.ctx.record(begun, answer, clock)

    assert settled(play, job) == [answer.columns["cost"]]
    play.sql("update jobs set run_at = now()")
    ended = play.until(job)
    assert settled(play, job) == [answer.columns["cost"], ended.cost]
    assert charged(play, job) == sum(settled(play, job))
    assert amiss(play) == set(), "it was paid for twice, as such calls may be, and the books are right"


def test_a_late_refusal_takes_back_what_was_charged(play: Stage) -> None:
    job = question(play)
    begun, step, clock = out(play, job)
    play.sandbox.fault(where="create", what="error", code="Throttling.RateQuota", times=1)
    refusal = step.send(begun)
    lapsed(play, job, State.QUEUED)

    with pytest.raises(ClaimLost):
        play.ctx.record(begun, refusal, clock)

    assert settled(play, job) == [0]
    assert play.cancel(job) == "canceled"
    assert (charged(play, job), play.job(job).billed) == (0, "no")
    assert audit(play.ctx.engine) == []


def test_a_late_answer_to_an_earlier_call_changes_nothing_of_what_the_last_one_cost(play: Stage) -> None:
    job = question(play)
    begun, step, clock = out(play, job)
    play.sandbox.fault(where="create", what="error", code="Throttling.RateQuota", times=1)
    refusal = step.send(begun)
    lapsed(play, job, State.QUEUED)
    play.sql("update jobs set run_at = now()")
    ended = play.until(job)

    with pytest.raises(ClaimLost):
        play.ctx.record(begun, refusal, clock)

    assert (play.job(job).billed, play.job(job).cost) == ("yes", ended.cost)
    assert settled(play, job) == [0, ended.cost]


@pytest.mark.parametrize("verdict", [None, "no"])
def test_a_verdict_that_comes_after_the_end_is_what_the_job_says_then(play: Stage, verdict: str | None) -> None:
    """The end is a task that nobody told of in time, and what a person may have said of its cost."""
    job = play.until(play.submit(), State.RUNNING)
    play.sql("update jobs set run_at = now() where id = :id", id=job.id)
    asleep, _, clock = play.begin(job)
    seen: Move = play.drive(lambda: next(play.step(asleep)[0]), lambda move: move.to is State.COPYING)
    play.sandbox.set(run_seconds=600)
    play.sql(
        "update jobs set state = 'failed', finished_at = now(), run_at = null, claimed = null,"
        " claim = claim + 1, sequence = sequence + 1 where id = :id",
        id=job.id,
    )
    if verdict:
        said(play, job, verdict)

    with pytest.raises(ClaimLost):
        play.ctx.record(asleep, seen, clock)

    ended = play.job(job)
    assert (ended.state, ended.billed, ended.cost) == (State.FAILED, "yes", 1_500_000)
    assert charged(play, job) == 1_500_000
    assert "M" not in amiss(play)
    with pytest.raises(Conflict, match="is known"):
        said(play, ended, "no")


def test_what_a_late_answer_to_a_part_cost_stands_on_its_parent(play: Stage) -> None:
    parent = play.submit("summary", WORDS, input={"mode": "calls", "documents": [{"text": "It tells of sales."}]})

    def parts() -> list[Job]:
        return [Job.of(row) for row in play.sql("select * from jobs where parent_id = :id", id=parent.id)]

    (part,) = play.drive(parts, bool)
    begun, step, clock = out(play, part)
    answer = step.send(begun)
    lapsed(play, part, State.QUEUED)
    assert settled(play, parent) == [part.estimate]
    play.sql("update jobs set run_at = now() where id = :id", id=part.id)
    before = play.until(parent)

    with pytest.raises(ClaimLost):
        play.ctx.record(begun, answer, clock)

    ended = play.job(parent)
    assert settled(play, parent)[0] == answer.columns["cost"] != part.estimate
    assert ended.cost == sum(settled(play, parent)) != before.cost
    assert amiss(play) == set()


def test_a_call_that_begins_when_its_lease_has_lapsed_already_is_not_made_by_others_too(play: Stage) -> None:
    """The database was away from the moment that the row was taken, so nobody else could take it either."""
    job = question(play)
    taken, step, clock = play.begin(job)
    beginning = next(step)
    play.lapse(job)
    begun = play.ctx.record(taken, beginning, clock)
    at_once(play, 3)

    play.ctx.record(begun, step.send(begun), clock)

    assert play.until(job).state == State.SUCCEEDED
    assert play.sandbox.ledger()["totals"]["creates"] == 1


def test_a_worker_that_lives_has_the_time_to_write_its_answer_once_the_database_is_back(play: Stage) -> None:
    job = question(play)
    begun, step, clock = out(play, job)
    answer = step.send(begun)
    play.lapse(job)
    at_once(play, 3)

    with pytest.raises(ClaimLost):
        play.ctx.record(begun, answer, clock)

    assert play.until(job).state == State.SUCCEEDED
    assert play.sandbox.ledger()["totals"]["creates"] == 1


# What is inferred of a lost call, and its own answer comes first


def uncertain(play: Stage, job: Job) -> tuple[Callable[[], None], Job]:
    """A job whose worker sleeps with the answer, which it writes when it is called; the job is taken up by others."""
    begun, step, clock = out(play, job)
    answer = step.send(begun)
    lapsed(play, job, State.UNCERTAIN)

    def wakes() -> None:
        with pytest.raises(ClaimLost):
            play.ctx.record(begun, answer, clock)

    return wakes, play.job(job)


def test_a_call_is_not_made_again_whose_answer_came_while_it_was_looked_for(play: Stage) -> None:
    play.sandbox.fault(where="list", what="lag", after_ms=600_000)
    wakes, job = uncertain(play, play.submit())
    play.sql("update attempts set sent_at = sent_at - interval '1 minute' where job_id = :id", id=job.id)
    play.sql("update jobs set run_at = now() where id = :id", id=job.id)
    taken, step, clock = play.begin(job)
    absent = next(step)
    assert absent.to is State.QUEUED

    wakes()
    moved = play.ctx.record(taken, absent, clock)

    assert moved.state == State.UNCERTAIN
    assert play.until(job).state == State.SUCCEEDED
    assert play.sandbox.ledger()["totals"]["tasks"] == 1


def test_a_cheap_call_is_not_made_again_whose_answer_came_just_before(play: Stage) -> None:
    wakes, job = uncertain(play, question(play))
    play.sql("update jobs set run_at = now() where id = :id", id=job.id)
    taken, step, clock = play.begin(job)
    again = next(step)
    assert again.to is State.QUEUED

    wakes()
    play.ctx.record(taken, again, clock)

    assert play.until(job).state == State.SUCCEEDED
    assert play.sandbox.ledger()["totals"]["creates"] == 1


def test_another_task_is_not_adopted_once_the_calls_own_answer_is_there(play: Stage) -> None:
    with play.ctx.engine.begin() as connection:
        other = keys.create_project(connection, "another-tenant")
    stranger = play.until(play.submit(project=other))
    play.sql("update attempts set task_id = null where job_id = :id", id=stranger.id)
    wakes, job = uncertain(play, play.submit())
    adopted = operator.decide(play.ctx, job, Decision(Action.ADOPT, "Ada", task_id=stranger.task_id))

    wakes()
    operator.carry_out(play.ctx, play.job(job), adopted)

    ended = play.until(job)
    assert ended.state == State.SUCCEEDED
    assert ended.task_id != stranger.task_id


@pytest.mark.parametrize("is_decided_before", [True, False])
def test_a_held_job_whose_answer_came_is_not_called_again_by_a_person(play: Stage, is_decided_before: bool) -> None:
    wakes, job = uncertain(play, play.submit())
    play.sql(
        "update jobs set state = 'held', held_for = 'uncertain', held_from = 'uncertain', run_at = null, claimed = null"
        " where id = :id",
        id=job.id,
    )
    job, decision = play.job(job), Decision(Action.REQUEUE, "Ada")
    decided = operator.decide(play.ctx, job, decision) if is_decided_before else None
    wakes()

    with pytest.raises(Conflict, match="look again"):
        operator.carry_out(play.ctx, job, decided or operator.decide(play.ctx, job, decision))

    assert play.until(job).state == State.SUCCEEDED
    assert play.sandbox.ledger()["totals"]["tasks"] == 1


def test_a_held_picture_goes_on_when_the_answer_of_its_call_comes_after_all(play: Stage) -> None:
    """A database that was away for longer than the call's lease: others look at the row before it is written."""
    job = play.submit("text-to-image", PICTURE, input={"prompt": "a shop"})
    begun, step, clock = out(play, job)
    answer = step.send(begun)
    lapsed(play, job, State.HELD)

    with pytest.raises(ClaimLost):
        play.ctx.record(begun, answer, clock)

    assert play.until(job, State.HELD, State.SUCCEEDED).state == State.SUCCEEDED
    assert play.sandbox.ledger()["totals"]["creates"] == 1


@pytest.mark.parametrize("is_decided_before", [True, False])
@pytest.mark.parametrize("action", [Action.GIVE_UP, Action.REQUEUE])
def test_a_picture_whose_answer_came_is_neither_lost_nor_called_unbilled(
    play: Stage, action: Action, is_decided_before: bool
) -> None:
    wakes, job = uncertain(play, play.submit("text-to-image", PICTURE, input={"prompt": "a shop"}))
    decision = Decision(action, "Ada", billed="no")
    decided = operator.decide(play.ctx, job, decision) if is_decided_before else None
    wakes()

    operator.carry_out(play.ctx, job, decided or operator.decide(play.ctx, job, decision))

    assert play.until(job).state == State.SUCCEEDED
    assert settled(play, job) == [play.job(job).cost]
    assert play.sandbox.ledger()["totals"]["creates"] == 1


def test_a_job_that_is_made_again_by_a_person_is_paid_for_again(play: Stage) -> None:
    job = canceled_while_it_is_out(play)
    with play.ctx.engine.begin() as connection:
        submission.retry(connection, play.project.id, job.id, play.now())

    ended = play.until(job)

    assert ended.state == State.SUCCEEDED
    assert charged(play, job) == (job.estimate or 0) + (ended.cost or 0)
    assert audit(play.ctx.engine) == []
