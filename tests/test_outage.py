"""The bucket is away for hours: all is stored before it expires, or it is said what was lost and what it cost."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest
from stage import Stage, stage

from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from worker.settings import Settings
from worker.states import State
from worker.storage import Bucket
from worker.tables import Job

JOBS = 12


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0.1, queue_seconds=0, limits={"*": Limits(rps=100, concurrency=50)})) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    limits = {"wan2.5-t2v-preview": {"concurrency": 50, "rps": 100}}
    with stage(environment, sandbox, limits=limits) as made:
        yield made


def without_bucket(play: Stage) -> Stage:
    """The same engine, with a bucket where nobody listens."""
    nowhere = Settings.model_validate({**play.ctx.settings.model_dump(), "s3_endpoint_url": "http://127.0.0.1:9"})
    return replace(play, ctx=replace(play.ctx, bucket=Bucket(nowhere)))


def made_while_away(play: Stage) -> list[Job]:
    away = without_bucket(play)
    submitted = [away.submit() for _ in range(JOBS)]
    away.drive(
        lambda: [away.job(job) for job in submitted],
        lambda jobs: all(job.state == State.COPYING and job.error for job in jobs),
    )
    return submitted


def pass_hours(play: Stage, hours: int) -> None:
    """Later by so much, for the links as for the rows."""
    play.sandbox.set(clock_offset_seconds=hours * 3600)
    shift = f"interval '{hours} hours'"
    play.sql(
        f"update jobs set links_expire_at = links_expire_at - {shift}, state_at = state_at - {shift}, run_at = now(),"
        " claimed = null where state = 'copying'"
    )


def test_what_was_made_while_the_bucket_was_away_for_twenty_hours_is_stored_in_time(play: Stage) -> None:
    submitted = made_while_away(play)
    assert all(play.document(job)["error"]["class"] == "storage" for job in submitted)
    pass_hours(play, 20)

    play.drive(lambda: [play.job(job).state for job in submitted], lambda states: set(states) == {State.SUCCEEDED})

    assert play.sandbox.ledger()["totals"]["tasks"] == JOBS


def test_what_could_not_be_stored_in_a_day_is_expired_and_says_what_it_cost(play: Stage) -> None:
    (job, *_) = made_while_away(play)
    pass_hours(play, 25)

    ended = play.until(job)

    assert ended.state == State.EXPIRED
    shown = play.document(job)
    assert shown["error"]["code"] == "output_expired"
    assert shown["error"]["billed"] == "yes"
    assert shown["cost"]["actual"] == "1.50"


def test_a_link_that_dies_soon_is_not_kept_waiting_by_any_number_of_others(play: Stage) -> None:
    (dying, unknown, *_) = made_while_away(play)
    play.sql("update jobs set run_at = now() + interval '1 day', claimed = null, links_expire_at = null")
    play.sql(
        "insert into jobs (project_id, kind, model, input, state, links_expire_at)"
        " select project_id, kind, model, input, 'copying', now() + interval '3 hours'"
        " from jobs, generate_series(1, 100) where id = :id",
        id=dying.id,
    )
    assert len(copies(play)) == 48

    play.sql("update jobs set run_at = now() where id = :id", id=unknown.id)
    assert copies(play) == []
    play.sql(
        "update jobs set run_at = now(), links_expire_at = now() + interval '119 minutes' where id = :id", id=dying.id
    )

    assert copies(play) == [dying.id]


def copies(play: Stage) -> list[uuid.UUID]:
    """The jobs whose copies a tick sends."""
    return [claim.id for message in play.tick() for claim in message.claims if message.queue == "transfer"]


def test_the_output_that_expires_first_is_copied_first(play: Stage) -> None:
    submitted = made_while_away(play)
    for n, job in enumerate(submitted):
        play.sql(
            "update jobs set links_expire_at = now() + make_interval(hours => :hours), run_at = now(), claimed = null"
            " where id = :id",
            hours=JOBS - n,
            id=job.id,
        )

    assert copies(play) == [job.id for job in reversed(submitted)]
