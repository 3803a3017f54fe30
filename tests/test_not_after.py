"""`not_after`: what has not been sent by then ends unpaid, and no create leaves after it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import batching
import pytest
from serving import CLIP, Served, served
from stage import Stage

from worker.errors import InvalidInput
from worker.states import State
from worker.tables import Job
from worker.text import moment

HOUR = timedelta(hours=1)
CHINA = timezone(timedelta(hours=8))
HOOK = "http://127.0.0.1:9/hooks"  # nobody listens there


def limited(play: Stage, **more: Any) -> Job:
    """A job that is to be sent within an hour."""
    return play.submit(not_after=play.now() + HOUR, **more)


def pass_it(play: Stage) -> None:
    play.sql("update jobs set not_after = now() - interval '1 s' where not_after is not null")


def assert_ended_unpaid(play: Stage, job: Job) -> None:
    found = play.job(job)
    assert found.state == State.FAILED
    assert found.error is not None
    assert (found.error["code"], found.error["class"], found.error["billed"]) == ("not_sent_in_time", "deadline", "no")
    assert (found.billed, found.cost) == ("no", None)
    assert [entry for entry, _ in play.ledger(job)] == ["reserve", "release"]
    assert play.sandbox.ledger()["totals"]["creates"] == 0


def test_what_waits_when_its_time_passes_ends_unpaid_and_its_receiver_is_told(play: Stage) -> None:
    job = limited(play, webhook_url=HOOK)
    pass_it(play)

    play.tick()

    assert_ended_unpaid(play, job)
    (delivery,) = play.deliveries()
    assert json.loads(delivery.body)["type"] == "job.failed"


def test_what_has_its_slot_and_is_not_taken_ends_too_and_frees_it(play: Stage) -> None:
    job = limited(play)
    sent = play.tick()
    assert play.job(job).state == State.ADMITTED
    pass_it(play)

    play.tick()
    play.play(sent)

    assert_ended_unpaid(play, job)


@pytest.mark.parametrize(("held_from", "ends"), [("queued", True), ("admitted", True), ("uncertain", False)])
def test_of_what_is_held_only_what_was_never_sent_ends(play: Stage, held_from: str, ends: bool) -> None:
    job = limited(play)
    play.sql("update jobs set state = 'held', held_for = 'batch', held_from = :f, run_at = null", f=held_from)
    pass_it(play)

    play.tick()

    if ends:
        assert_ended_unpaid(play, job)
    else:
        assert play.job(job).state == State.HELD


def test_what_a_worker_has_taken_is_left_to_it_and_no_create_leaves(play: Stage) -> None:
    job = limited(play)
    taken, step, clock = play.begin(job)
    pass_it(play)

    play.tick()
    assert play.job(job).state == State.ADMITTED
    after = play.ctx.record(taken, next(step), clock)

    assert after.state == State.FAILED
    assert list(play.attempts(job)) == []
    assert_ended_unpaid(play, job)


def test_what_is_with_the_provider_is_seen_to_its_end(play: Stage) -> None:
    job = play.until(limited(play), State.RUNNING)
    pass_it(play)

    assert play.until(job).state == State.SUCCEEDED


def test_what_was_sent_in_time_says_its_limit(play: Stage) -> None:
    job = play.until(limited(play))

    assert job.state == State.SUCCEEDED
    assert play.document(job)["not_after"] is not None


def test_a_parent_that_has_not_begun_ends_and_one_that_gathers_goes_on(play: Stage) -> None:
    script = {"input": {"paragraphs": [{"text": "Verse of the water wheel."}]}}
    begun = play.until(limited(play, kind="speech", model="qwen3-tts-flash", **script), State.GATHERING)
    waits = limited(play, kind="speech", model="qwen3-tts-flash", **script)
    pass_it(play)

    play.play(play.tick())

    assert (play.job(waits).error or {})["code"] == "not_sent_in_time"
    assert play.until(begun).state == State.SUCCEEDED


def test_a_parent_that_is_taken_as_its_time_passes_does_not_begin(play: Stage) -> None:
    job = limited(play, kind="speech", model="qwen3-tts-flash", input={"paragraphs": [{"text": "Verse."}]})
    taken, _, clock = play.begin(job)
    taken.not_after = play.now() - timedelta(seconds=1)

    after = play.ctx.record(taken, next(play.step(taken)[0]), clock)

    assert after.state == State.FAILED


def test_a_person_who_asks_again_takes_the_limit_off(play: Stage) -> None:
    from worker.jobs import submission

    job = limited(play)
    pass_it(play)
    play.tick()

    with play.ctx.engine.begin() as connection:
        again = submission.retry(connection, play.project.id, job.id, play.now())

    assert again.not_after is None
    assert play.until(again).state == State.SUCCEEDED


def test_many_end_five_hundred_a_tick_those_that_are_longest_overdue_first(play: Stage) -> None:
    batch = batching.committed(play, [{"not_after": play.now() + HOUR} for _ in range(503)])
    play.sql("update jobs set not_after = now() - batch_row * interval '1 s'")

    play.tick()
    left = [job.batch_row for job in batching.jobs(play, batch) if job.state != State.FAILED]
    play.tick()

    assert left == [1, 2, 3]
    assert {job.state for job in batching.jobs(play, batch)} == {State.FAILED}


@pytest.mark.parametrize(("later", "code"), [(-timedelta(seconds=1), "in_the_past"), (timedelta(days=367), "too_late")])
def test_a_limit_that_makes_no_sense_is_refused_with_the_other_faults(play: Stage, later: timedelta, code: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        play.submit(not_after=play.now() + later, input={"prompt": ""})

    assert {("/not_after", code)} < {(fault.pointer, fault.code) for fault in refused.value.faults}


class TestOverHttp:
    @pytest.fixture
    def api(self, environment: dict[str, str]) -> Iterator[Served]:
        with served(environment) as made:
            yield made

    def test_a_job_says_until_when_it_may_be_sent(self, api: Served) -> None:
        http = api.http(api.key("spring"))

        at = (datetime.now(UTC) + HOUR).replace(microsecond=0)

        made = http.post("/v1/jobs", json=CLIP | {"not_after": at.astimezone(CHINA).isoformat()})
        past = http.post("/v1/jobs", json=CLIP | {"not_after": "2020-12-24T18:00:00Z"})

        assert made.json()["not_after"] == f"{at:%Y-%m-%dT%H:%M:%S}.000Z"
        assert [(fault["pointer"], fault["code"]) for fault in past.json()["errors"]] == [("/not_after", "in_the_past")]

    def test_a_schedule_cannot_say_an_instant(self, api: Served) -> None:
        template = CLIP | {"not_after": "2026-12-24T18:00:00Z"}
        said = {"name": "nightly", "cron": "0 2 * * *", "template": template}

        refused = api.http(api.key("spring")).post("/v1/schedules", json=said)

        (fault,) = refused.json()["errors"]
        assert (refused.status_code, fault["pointer"], fault["code"]) == (422, "/template/not_after", "not_allowed")


def test_what_is_late_takes_no_slot_and_no_place_in_the_rate_from_others(play: Stage) -> None:
    late = batching.committed(play, [{}] * 510)
    play.sql("update jobs set not_after = now() - interval '1 s'")
    other = play.submit()

    play.tick()

    assert play.job(other).state == State.ADMITTED
    assert {job.state for job in batching.jobs(play, late)} == {State.FAILED, State.QUEUED}


def test_each_that_is_late_says_its_own_time_and_what_a_call_before_may_have_cost(play: Stage) -> None:
    first, second = limited(play), limited(play)
    play.sql("update jobs set not_after = now() - interval '1 h', billed = 'unknown' where id = :id", id=second.id)
    pass_first = "update jobs set not_after = now() - interval '1 s' where id = :id"
    play.sql(pass_first, id=first.id)

    play.tick()

    for job, billed in ((first, "no"), (second, "unknown")):
        found = play.job(job)
        assert found.error is not None
        assert (found.error["billed"], moment(found.not_after) in found.error["message"]) == (billed, True)
    assert [entry for entry, _ in play.ledger(second)] == ["reserve"]  # its verdict is missing
