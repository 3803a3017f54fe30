"""The claim protocol: a number is spent once, by one worker, whatever becomes of messages and processes."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import Engine, text
from stage import Stage, stage

from ops.sandbox.options import Options
from ops.sandbox.testing import running
from worker import broker, claims, moves, tick, timeouts, work
from worker.context import Clock
from worker.errors import ClaimLost
from worker.runner.looks import Looks
from worker.states import MOVES, TERMINAL, Mode, Move, State
from worker.steps import STEPS
from worker.tables import Job
from worker.work import WORK


@pytest.fixture
def play(environment: dict[str, str]) -> Iterator[Stage]:
    limits = {"wan2.5-t2v-preview": {"concurrency": 1000, "rps": 100_000}}
    with (
        running(Options(run_seconds=0.1, queue_seconds=0)) as sandbox,
        stage(environment, sandbox, limits=limits) as made,
    ):
        yield made


def sent(messages: list[tick.Message]) -> list[tuple[uuid.UUID, int]]:
    return [(claim.id, claim.number) for message in messages for claim in message.claims]


def take(engine: Engine, numbers: list[tuple[uuid.UUID, int]]) -> list[uuid.UUID]:
    with engine.begin() as connection:
        return [row.id for row in claims.take(connection, Job, numbers, timedelta(seconds=60))]


def vars_of(job: Job) -> dict[str, object]:
    return {column.name: getattr(job, column.name) for column in Job.__table__.c}


def test_a_number_is_spent_once_however_many_workers_try(play: Stage) -> None:
    submitted = [play.submit() for _ in range(20)]
    numbers = sent(play.tick())
    assert len(numbers) == len(submitted)

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: take(play.ctx.engine, numbers), range(8)))

    assert Counter(row for rows in taken for row in rows) == Counter(job.id for job in submitted)


def test_many_ticks_at_once_claim_each_row_once(play: Stage) -> None:
    submitted = [play.submit() for _ in range(30)]

    with ThreadPoolExecutor(8) as pool:
        ticks = list(pool.map(lambda _: play.tick(), range(24)))

    numbers = [number for messages in ticks for number in sent(messages)]
    assert sorted(row for row, _ in numbers) == sorted(job.id for job in submitted)


def test_a_repeated_message_is_dropped(play: Stage) -> None:
    job = play.submit()
    messages = play.tick()

    play.play(messages * 3)

    assert len(play.attempts(job)) == 1
    assert play.sandbox.ledger()["totals"]["tasks"] == 1


def test_a_lost_message_is_sent_again_when_its_lease_lapses(play: Stage) -> None:
    job = play.submit()
    lost = sent(play.tick())
    assert play.tick() == []

    play.lapse(job)
    again = sent(play.tick())

    assert again == [(job.id, lost[0][1] + 1)]
    assert play.job(job).crashes == 0


def test_a_late_message_is_dropped(play: Stage) -> None:
    job = play.submit()
    late = play.tick()
    play.lapse(job)
    play.play(play.tick())

    play.play(late)

    assert len(play.attempts(job)) == 1


def test_a_late_worker_loses_its_claim_and_writes_nothing(play: Stage) -> None:
    job = play.until(play.submit(), State.RUNNING)
    play.sql("update jobs set run_at = now()")
    asleep = play.take(job)
    play.lapse(job)
    ended = play.until(job)

    with play.ctx.engine.begin() as connection, pytest.raises(ClaimLost):
        moves.record(connection, asleep, Move(State.FAILED, "too late"), play.now())

    assert play.job(job).state == ended.state == State.SUCCEEDED
    assert play.states(job)[-1] == "succeeded"


LEGAL = [(left, to) for left in State for to in sorted(MOVES[left]) if to is not State.SUBMITTING]


@pytest.mark.parametrize(("left", "to"), LEGAL, ids=lambda state: str(state))
def test_no_move_is_put_on_record_under_a_claim_that_is_lost(play: Stage, left: State, to: State) -> None:
    """The row is in the very state that is left: only the number tells that it is somebody else's."""
    job = play.submit()
    is_over = left in TERMINAL
    play.sql(
        "update jobs set state = :state, finished_at = case when :over then now() end, held_for = :held,"
        " run_at = case when :over then null else now() + interval '1 h' end, claim = 7, claimed = null where id = :id",
        id=job.id, state=left, over=is_over, held="crashes" if left is State.HELD else None,
    )  # fmt: skip
    mine = play.job(job)
    play.sql("update jobs set claim = 8 where id = :id", id=job.id)
    theirs = play.job(job)

    with play.ctx.engine.begin() as connection, pytest.raises(ClaimLost):
        moves.record(connection, mine, Move(to, "too late", play.now()), play.now())

    assert vars_of(play.job(job)) == vars_of(theirs)
    assert play.states(job) == ["queued"]


def test_no_create_begins_under_a_claim_that_is_lost(play: Stage) -> None:
    job = play.submit()
    taken, step, clock = play.begin(job)
    move = next(step)
    play.sql("update jobs set claim = claim + 1 where id = :id", id=job.id)

    with pytest.raises(ClaimLost):
        play.ctx.record(taken, move, clock)

    assert (play.job(job).state, play.attempts(job)) == (State.ADMITTED, [])


def test_no_wait_is_written_under_a_claim_that_is_lost(play: Stage) -> None:
    job = play.until(play.submit(), State.RUNNING)
    mine = play.job(job)
    play.sql("update jobs set claim = claim + 1 where id = :id", id=job.id)
    theirs = play.job(job)

    with play.ctx.engine.begin() as connection:
        moves.record_waits(connection, [(mine, Move(State.RUNNING, run_at=play.now()))], play.now())
        claims.give_back(connection, Job, [(mine.id, mine.claim)], timedelta(0))

    assert vars_of(play.job(job)) == vars_of(theirs)


def test_an_answer_is_written_to_its_attempt_though_the_claim_is_lost(play: Stage) -> None:
    job = play.submit()
    taken, step, clock = play.begin(job)
    begun = play.ctx.record(taken, next(step), clock)
    play.lapse(job)
    play.play(play.tick())
    accepted = step.send(begun)  # type: ignore[attr-defined]

    with pytest.raises(ClaimLost):
        play.ctx.record(begun, accepted, clock)

    (attempt,) = play.attempts(job)
    assert attempt.outcome == "accepted"
    ended = play.until(job)
    assert ended.state == State.SUCCEEDED
    assert ended.task_id == attempt.task_id
    assert play.sandbox.ledger()["totals"]["tasks"] == 1


def test_only_a_lease_that_lapses_in_a_workers_hands_is_a_crash(play: Stage) -> None:
    job = play.submit()
    play.tick()
    play.lapse(job)
    play.take(job)
    assert play.job(job).crashes == 0

    play.lapse(job)
    (message,) = play.tick()

    assert play.job(job).crashes == 1
    assert len(message.claims) == 1


def test_what_is_written_keeps_its_wait_where_a_neighbours_claim_is_lost(play: Stage) -> None:
    """Both were in one message, which lets go of whatever of it is in its hands still."""
    play.sandbox.set(run_seconds=600)
    job, lost = play.until(play.submit(), State.RUNNING), play.submit()
    play.lapse(job)
    taken, _, clock = play.begin(job)
    later = clock() + timedelta(minutes=1)
    wait = Move(State.RUNNING, run_at=later)

    Looks(play.runner)._write([(taken, wait), (lost, wait)], clock)

    assert play.job(job).run_at == later


def test_three_crashes_hold_a_job_and_its_neighbours_go_on(play: Stage) -> None:
    poison, neighbour = play.submit(), play.submit()
    for _ in range(timeouts.CRASHES):
        play.take(poison)
        play.lapse(poison)
    play.tick()

    held = play.job(poison)
    assert (held.state, held.held_for) == (State.HELD, "crashes")
    play.lapse(neighbour)
    assert play.until(neighbour).state == State.SUCCEEDED


def test_a_recorded_move_forgets_crashes(play: Stage) -> None:
    job = play.submit()
    play.take(job)
    play.lapse(job)

    running_job = play.until(job, State.RUNNING)

    assert running_job.crashes == 0


def test_claims_that_could_not_be_published_are_due_at_once(play: Stage) -> None:
    submitted = [play.submit() for _ in range(9)]

    def publish(message: tick.Message) -> None:
        raise ConnectionError("redis is away")

    play.runner.tick(publish)

    assert sorted(row for row, _ in sent(play.tick())) == sorted(job.id for job in submitted)


def test_claims_are_kept_where_the_broker_reads_and_takes_no_writes(
    play: Stage, broker_url: str, worker_number: int
) -> None:
    """As a replica does (READONLY), or a server whose memory is full (OOM): the answer is an error, not a silence."""
    reader = f"reader{worker_number}"
    with redis.Redis.from_url(broker_url) as admin:
        admin.acl_setuser(
            reader, enabled=True, passwords=["+s"], keys=["*"], channels=["*"], commands=["+@all", "-@write"]
        )
    address = broker_url.rpartition("@")[2]
    url = SecretStr(f"redis://{reader}:s@{address}")
    app = broker.celery_app(play.ctx.settings.model_copy(update={"broker_url": url}))
    job = play.submit()

    play.runner.tick(lambda message: broker.publish(app, message.task, message.queue, []))

    assert [row for row, _ in sent(play.tick())] == [job.id]


def test_no_more_is_on_its_way_than_a_queue_can_start(play: Stage) -> None:
    for _ in range(100):
        play.submit()

    first, second = play.tick(), play.tick()

    assert len(sent(first)) == 64
    assert sent(second) == []


def test_a_stopped_tick_does_not_hold_the_others_up(play: Stage) -> None:
    with play.ctx.engine.begin() as stopped:
        tick.run(stopped)
        play.submit()
        assert play.tick() == []
        timeout = stopped.execute(text("show idle_in_transaction_session_timeout")).scalar_one()

    assert timeout == "5s"
    assert len(play.tick()) == 1


def test_what_a_step_records_is_on_record_before_its_next_line(play: Stage) -> None:
    job = play.submit()
    taken, step, clock = play.begin(job)

    play.ctx.record(taken, next(step), clock)

    assert play.job(job).state == State.SUBMITTING
    assert [attempt.outcome for attempt in play.attempts(job)] == ["sent"]
    assert play.sandbox.ledger()["totals"]["creates"] == 0


def test_cancel_wins_or_loses_against_submitting_but_never_both(play: Stage) -> None:
    job = play.submit()
    taken, step, clock = play.begin(job)
    assert play.cancel(job) == "requested"

    ended = play.ctx.record(taken, next(step), clock)

    assert ended.state == State.CANCELED
    assert play.sandbox.ledger()["totals"]["creates"] == 0


def test_a_call_that_slept_with_its_machine_is_too_late_to_be_sent(
    play: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux's monotonic clock stands still while the machine is suspended."""
    taken, step, clock = play.begin(play.submit())
    submitting = play.ctx.record(taken, next(step), clock)
    slept, clock_gettime = {time.CLOCK_BOOTTIME: 3600.0}, time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda which: clock_gettime(which) + slept.get(which, 0.0))

    move = step.send(submitting)  # type: ignore[attr-defined]

    assert (move.to, move.why) == (State.QUEUED, "not sent: the worker woke too late for it")
    assert play.sandbox.ledger()["totals"]["creates"] == 0


def test_a_commit_whose_answer_was_lost_is_not_made_twice(play: Stage) -> None:
    job = play.until(play.submit(), State.RUNNING)
    play.sql("update jobs set run_at = now()")
    taken = play.take(job)
    clock = Clock(play.now())
    move = Move(State.FAILED, "by the test", columns={"billed": "no"})
    first = play.ctx.record(taken, move, clock)

    again = play.ctx.record(taken, move, clock)

    assert again.sequence == first.sequence
    assert play.states(job).count("failed") == 1


def test_each_step_has_its_work_and_each_work_its_step() -> None:
    assert WORK.keys() == STEPS.keys()


@pytest.mark.parametrize(("mode", "state"), list(WORK))
def test_every_lease_is_longer_than_the_calls_under_it(mode: Mode, state: State) -> None:
    submit = timeouts.HANDOVER + timedelta(seconds=1) + timeouts.SEND + timeouts.CREATE
    admitted = {Mode.CALL: timeouts.HANDOVER + timeouts.CALL, Mode.BATCH: timeouts.UPLOAD + timeouts.CREATE}
    copied = timeouts.GATHER if mode is Mode.PARENT else timeouts.COPY[1]
    longest = {State.ADMITTED: admitted.get(mode, submit), State.COPYING: copied}.get(state, timeouts.QUERY)

    assert WORK[mode, state].lease > longest


def test_the_first_copy_of_an_output_is_given_up_soon_and_later_ones_have_longer(play: Stage) -> None:
    job = play.until(play.submit(), State.COPYING)
    leases, tries = [], (timedelta(0), timedelta(minutes=5), timedelta(hours=5))
    for tried in tries:
        play.sql("update jobs set run_at = now(), claimed = null, state_at = now() - :tried", tried=tried)
        (message,) = play.tick()
        with play.ctx.engine.begin() as connection:
            (row,) = claims.take(connection, Job, message.numbers, work.LEASE)
        leases.append(row.run_at - row.now)

    begun = timeouts.WORKING  # after it was taken, as the last of its message
    expected = [
        begun + timeouts.copying(tried) + 2 * begun + timeouts.BUCKET_OVERRUN
        for tried in (timedelta(0), timedelta(minutes=5), timedelta(hours=5))
    ]
    assert [round(lease.total_seconds()) for lease in leases] == [round(span.total_seconds()) for span in expected]
    assert play.job(job).state == State.COPYING


def test_deliveries_whose_claims_have_all_lapsed_do_not_wait_for_each_other(play: Stage) -> None:
    for n in range(20):  # more than one receiver's threads may have in hand
        play.cancel(play.submit(webhook_url="http://127.0.0.1:9/hooks", custom_id=str(n)))
    play.sql("update deliveries set claimed = 'taken', run_at = now() - interval '1 s'")

    assert {message.task for message in play.tick()} == {"noria.deliver"}


def test_what_has_no_link_is_claimed_beside_what_has_one_and_after_it(play: Stage) -> None:
    first, second, third = (play.submit() for _ in range(3))
    play.sql("update jobs set state = 'copying', run_at = now()")
    for job, hours in ((first, None), (second, 2), (third, 1)):
        play.sql(
            "update jobs set links_expire_at = now() + :hours * interval '1 h' where id = :id", hours=hours, id=job.id
        )

    claimed = [claim.id for message in play.tick() for claim in message.claims]

    assert claimed == [third.id, second.id, first.id]


def test_a_claim_that_was_given_back_is_not_spent(play: Stage) -> None:
    play.submit()
    numbers = sent(play.tick())
    with play.ctx.engine.begin() as connection:
        claims.give_back(connection, Job, numbers, timedelta(minutes=1))

    assert take(play.ctx.engine, numbers) == []
