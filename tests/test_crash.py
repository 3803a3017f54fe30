"""Processes die at any instant: whatever was on record then, nothing is lost, and nothing is made or paid for twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stage import Stage

from ops.sandbox.testing import Sandbox
from worker.states import State
from worker.tables import Job

KILLER = Path(__file__).with_name("killer.py")


def kill_at(job: Job, point: str, environment: dict[str, str], sandbox: Sandbox) -> None:
    """A real worker process takes the job, which is due, and is killed at the point."""
    settings = {
        **os.environ,
        **environment,
        "NORIA_DASHSCOPE_URL": sandbox.url,
        "PYTHONPATH": str(KILLER.parent.parent),
    }
    done = subprocess.run(
        [sys.executable, str(KILLER), str(job.id), point], env=settings, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def paid(play: Stage) -> int:
    billed: int = play.sandbox.ledger()["totals"]["billed_micros"]
    return billed


@pytest.mark.parametrize(
    ("state", "point"),
    [
        (State.ADMITTED, "taken"),
        (State.RUNNING, "taken"),
        (State.RUNNING, "answered"),
        (State.COPYING, "taken"),
        (State.COPYING, "answered"),
    ],
)
def test_a_worker_killed_where_nothing_is_at_stake_costs_only_its_lease(
    play: Stage, environment: dict[str, str], sandbox: Sandbox, state: State, point: str
) -> None:
    job = play.submit()
    if state != State.ADMITTED:
        play.until(job, state)
        play.sql("update jobs set run_at = now() - interval '1 s'")

    kill_at(job, point, environment, sandbox)
    assert play.tick() == [], "its lease keeps others off"
    play.lapse(job)
    ended = play.until(job)

    assert ended.state == State.SUCCEEDED
    assert sandbox.ledger()["totals"]["tasks"] == 1
    assert paid(play) == ended.cost
    assert len(play.document(job)["outputs"]) == 1


def test_a_worker_killed_before_its_create_call_is_followed_by_one_that_proves_that_nothing_was_made(
    play: Stage, environment: dict[str, str], sandbox: Sandbox
) -> None:
    job = play.submit()
    kill_at(job, "recorded", environment, sandbox)
    assert play.job(job).state == State.SUBMITTING

    play.lapse(job)
    ended = play.until(job)

    assert ended.state == State.SUCCEEDED
    assert [attempt.outcome for attempt in play.attempts(job)] == ["absent", "accepted"]
    assert sandbox.ledger()["totals"]["creates"] == 1


def test_a_worker_killed_with_the_answer_in_its_hand_is_followed_by_one_that_finds_the_task(
    play: Stage, environment: dict[str, str], sandbox: Sandbox
) -> None:
    job = play.submit()
    kill_at(job, "answered", environment, sandbox)
    assert sandbox.ledger()["totals"]["tasks"] == 1

    play.lapse(job)
    ended = play.until(job)

    assert ended.state == State.SUCCEEDED
    assert play.states(job)[2:5] == ["submitting", "uncertain", "running"]
    assert sandbox.ledger()["totals"]["tasks"] == 1


def test_every_row_is_picked_up_by_a_new_process_wherever_a_step_is_left(play: Stage) -> None:
    """Each step of a whole life is first run to its last move and abandoned there, then done by another."""
    job = play.submit()
    seen = []
    while play.job(job).state not in ("succeeded", "held"):
        taken, step, _ = play.begin(job)
        seen.append(taken.state)
        if taken.state != State.ADMITTED:  # what a create call left behind is the stories above
            next(step)
        play.lapse(job)
        taken, step, clock = play.begin(job)
        play.runner.carry_out(taken, clock)
        play.sql("update jobs set run_at = now() - interval '1 s', claimed = null where finished_at is null")

    assert play.job(job).state == State.SUCCEEDED
    assert set(seen) >= {State.ADMITTED, State.RUNNING, State.COPYING}
    assert play.sandbox.ledger()["totals"]["tasks"] == 1


def test_the_database_going_away_in_mid_step_is_waited_for(play: Stage) -> None:
    job = play.submit()
    taken, step, clock = play.begin(job)
    begun = play.ctx.record(taken, next(step), clock)
    accepted = step.send(begun)  # type: ignore[attr-defined]

    others = "pid <> pg_backend_pid() and datname = current_database()"
    play.sql(f"select pg_terminate_backend(pid) from pg_stat_activity where {others}")
    recorded = play.ctx.record(begun, accepted, clock)

    assert recorded.state == State.RUNNING
    assert play.until(job).state == State.SUCCEEDED


def test_a_copy_that_is_made_twice_is_one_object_with_the_same_bytes(play: Stage) -> None:
    job = play.until(play.submit(), State.COPYING)
    play.sql("update jobs set run_at = now()")
    _, step, _ = play.begin(job)
    next(step)
    play.lapse(job)

    play.until(job)

    (output,) = play.document(job)["outputs"]
    head = play.ctx.bucket.head(output["key"])
    assert head is not None
    assert head.bytes == output["bytes"]
