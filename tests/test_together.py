"""What a message's rows share: one taking, and one commit for the moves of steps that may be repeated."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
from celery.signals import task_received
from celery.worker import state
from stage import PATIENCE, Stage, stage

from ops.sandbox.options import Options
from ops.sandbox.testing import running
from worker import broker, timeouts, work
from worker.claims import TAKEN
from worker.context import Clock, Context, Moves
from worker.states import Mode, Move, State
from worker.steps import STEPS
from worker.tables import Job
from worker.tick import Message


@pytest.fixture
def play(environment: dict[str, str]) -> Iterator[Stage]:
    limits = {"wan2.5-t2v-preview": {"concurrency": 1000, "rps": 100_000}}
    with (
        running(Options(run_seconds=0.05, queue_seconds=0)) as sandbox,
        stage(environment, sandbox, limits=limits) as made,
    ):
        yield made


def copying(play: Stage, count: int) -> list[Job]:
    """Clips that are made, and wait for their copies."""
    jobs = [play.submit(webhook_url="http://127.0.0.1:9/hooks") for _ in range(count)]
    play.drive(lambda: {play.job(job).state for job in jobs}, lambda states: states == {"copying"} or not hurried(play))
    return [play.job(job) for job in jobs]


def hurried(play: Stage) -> bool:
    """Keeps what is made from being copied yet; always true."""
    play.sql(
        "update jobs set run_at = now() + interval '1 h', claim = claim + 1, claimed = null where state = 'copying'"
    )
    return True


def one_message(play: Stage, jobs: list[Job]) -> list[Message]:
    """The jobs' messages, once all of them are due."""
    play.sql("update jobs set run_at = now() where state = 'copying'")
    return [message for message in play.tick() if message.queue == "transfer"]


def wait_until(enough: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not enough():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


@contextmanager
def commits(play: Stage) -> Iterator[list[int]]:
    """One entry for each transaction that is committed."""
    seen: list[int] = []

    def note(_: Any) -> None:
        seen.append(1)

    sqlalchemy.event.listen(play.ctx.engine, "commit", note)
    yield seen
    sqlalchemy.event.remove(play.ctx.engine, "commit", note)


def test_the_copies_of_a_message_are_taken_in_one_commit_and_put_on_record_in_another(play: Stage) -> None:
    jobs = copying(play, 3)
    messages = one_message(play, jobs)
    together = Message("noria.work", "transfer", tuple(claim for message in messages for claim in message.claims))

    with commits(play) as seen:
        play.play([together])

    assert len(seen) == 2
    assert [play.job(job).state for job in jobs] == ["succeeded"] * 3
    assert len(play.deliveries()) == 3
    assert {event["type"] for event in play.told if event["uuid"] in map(str, (job.id for job in jobs))} >= {
        "task-copying",
        "task-succeeded",
    }


def test_a_lost_claim_and_a_move_that_fails_for_itself_hold_up_no_other(play: Stage) -> None:
    jobs = copying(play, 4)
    for message in one_message(play, jobs):
        for claim in message.claims:
            play.spend(claim.id, claim.number)
    lost, unfit, *others = (play.job(job) for job in jobs)
    play.sql("update jobs set claim = claim + 1 where id = :id", id=lost.id)
    done = Move(State.SUCCEEDED)
    impossible = Move(State.SUCCEEDED, outputs=({"n": 0, "role": "video", "key": None},))

    moved = [(lost, done), (unfit, impossible), *((job, done) for job in others)]
    play.runner.put(moved, Clock(play.now()))

    assert [play.job(job).state for job in (lost, unfit, *others)] == ["copying", "copying", "succeeded", "succeeded"]
    assert play.job(unfit).claimed == TAKEN  # left to its lease, as any mistake of ours is
    assert play.states(others[0]).count("succeeded") == 1


def test_messages_that_come_twice_and_at_once_store_and_tell_once(play: Stage) -> None:
    jobs = copying(play, 12)
    messages = one_message(play, jobs)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda message: play.play([message]), messages * 3))

    assert [play.job(job).state for job in jobs] == ["succeeded"] * 12
    assert play.sql("select count(*) as n from events where entered = 'succeeded'")[0]["n"] == 12
    assert len(play.deliveries()) == 12
    assert play.sql("select max(crashes) as most from jobs")[0]["most"] == 0


def test_what_a_slow_row_holds_up_is_given_back_and_counts_as_no_crash(
    play: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = copying(play, 3)
    claims = tuple(claim for message in one_message(play, jobs) for claim in message.claims)
    monkeypatch.setattr(timeouts, "WORKING", timedelta(0))

    play.play([Message("noria.work", "transfer", claims)])

    states = {job.id: (job.state, job.claimed, job.crashes) for job in map(play.job, jobs)}
    assert sorted(states.values(), key=str) == [("copying", None, 0), ("copying", None, 0), ("succeeded", None, 0)]
    assert states[claims[0].id][0] == "succeeded"


def test_what_is_done_is_told_and_what_is_not_begun_is_given_back_while_a_slow_row_goes_on(
    play: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = copying(play, 3)
    claims = tuple(claim for message in one_message(play, jobs) for claim in message.claims)
    done, slow, late = (claim.id for claim in claims)
    step, let_go = STEPS[Mode.TASK, State.COPYING], Event()

    def waits(ctx: Context, job: Job, clock: Clock) -> Moves:
        if job.id == slow:
            assert let_go.wait(PATIENCE)
        yield from step(ctx, job, clock)

    def row(job_id: uuid.UUID) -> tuple[str, str | None, int]:
        (found,) = play.sql("select state, claimed, crashes from jobs where id = :id", id=job_id)
        return found["state"], found["claimed"], found["crashes"]

    monkeypatch.setitem(STEPS, (Mode.TASK, State.COPYING), waits)
    monkeypatch.setattr(timeouts, "WORKING", timedelta(seconds=2))
    with ThreadPoolExecutor(1) as thread:
        playing = thread.submit(play.play, [Message("noria.work", "transfer", claims)])
        try:
            wait_until(lambda: row(done)[0] == "succeeded" and row(late) == ("copying", None, 0))
            assert row(slow) == ("copying", TAKEN, 0)
        finally:
            let_go.set()
        playing.result()

    assert row(slow)[0] == "succeeded"
    assert play.sql("select count(*) as n from events where entered = 'succeeded'")[0]["n"] == 2


@pytest.mark.parametrize(
    ("state", "crashes", "rows"),
    [("running", 0, [120, 120, 10]), ("running", 1, [1] * 250), ("copying", 0, [1] * 48)],
)
def test_rows_of_a_message_on_which_a_worker_died_go_again_in_parts(
    play: Stage, state: str, crashes: int, rows: list[int]
) -> None:
    job = play.submit()
    play.sql("update jobs set state = :state, run_at = now(), claimed = 'taken' where id = :id", id=job.id, state=state)
    play.sql(
        """insert into jobs (project_id, kind, model, mode, input, state, run_at, account, claimed, crashes)
           select project_id, kind, model, mode, input, state, run_at, 'default', 'taken', :crashes
             from jobs, generate_series(1, 250) where id = :id""",
        id=job.id,
        crashes=crashes,
    )
    play.sql("update jobs set run_at = null, claimed = null where id = :id", id=job.id)

    assert [len(message.claims) for message in play.tick()] == rows


@pytest.mark.parametrize(("due", "rows"), [(1, [1]), (4, [1, 1, 1, 1]), (6, [2, 2, 2]), (40, [8, 8, 8, 8, 8])])
def test_rows_share_a_message_once_there_are_more_than_threads_can_begin(
    play: Stage, due: int, rows: list[int]
) -> None:
    job = play.submit()
    play.sql("update jobs set state = 'copying', run_at = now(), account = 'default' where id = :id", id=job.id)
    play.sql(
        """insert into jobs (project_id, kind, model, mode, input, state, run_at, account)
           select project_id, kind, model, mode, input, state, run_at, account from jobs, generate_series(2, :due)
            where id = :id""",
        id=job.id,
        due=due,
    )

    assert [len(message.claims) for message in play.tick()] == rows


def test_a_tick_claims_what_is_due_and_looks_at_nothing_else(play: Stage) -> None:
    play.until(play.submit(), State.RUNNING)
    play.sql("update jobs set run_at = now()")
    play.sql("update duties set due_at = now() + interval '1 h'")
    sent: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        sent.append(statement)

    sqlalchemy.event.listen(play.ctx.engine, "before_cursor_execute", note)
    (message,) = play.tick()

    # the look, and the claims of the two groups that have running jobs: tasks and provider batches
    assert (message.task, len(sent)) == ("noria.poll", 3)


def test_only_steps_that_make_nothing_share_a_commit() -> None:
    """A create's answer is on record at once: what is at stake there is a payment."""
    repeatable = {key for key, wants in work.WORK.items() if wants.repeatable}

    assert repeatable == {(Mode.TASK, State.COPYING), (Mode.CALL, State.COPYING), (Mode.BATCH, State.RUNNING)}


class Loop:
    """Celery's loop, whose timers fire when the test says so."""

    def __init__(self) -> None:
        self.timers: list[Callable[[], None]] = []

    def call_later(self, _: float, act: Callable[[], None]) -> None:
        self.timers.append(act)

    def fire(self) -> None:
        waiting, self.timers = self.timers, []
        for act in waiting:
            act()


def test_a_worker_whose_threads_are_all_busy_looks_until_one_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery's loop sleeps for a second at a time, and no task's end wakes it."""
    loop, busy = Loop(), set[int]()
    monkeypatch.setattr(state, "reserved_requests", busy)
    monkeypatch.setattr(task_received, "receivers", [])
    broker.look_for_free_threads(SimpleNamespace(hub=loop, pool=SimpleNamespace(num_processes=2)))

    for n in range(2):
        task_received.send(sender=None)
        busy.add(n)
        assert len(loop.timers) == n  # none while a thread is free
    task_received.send(sender=None)
    for _ in range(3):
        loop.fire()
        assert len(loop.timers) == 1
    busy.clear()
    loop.fire()
    assert loop.timers == []

    busy.add(3)
    task_received.send(sender=None)
    assert len(loop.timers) == 1
