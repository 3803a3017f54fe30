"""Tokens: a lane's minute and day of them are kept by what calls may take, and settled by what they took."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from worker import catalog, keys, moves
from worker.catalog import Usage
from worker.jobs import reading
from worker.lanes import slots
from worker.moves import fair_queue
from worker.settings import Settings
from worker.states import Move, State
from worker.steps import create
from worker.tables import Job

MODEL, UNLIMITED = "qwen-plus", "wan2.5-t2v-preview"
TPM, TPD = 60_000, 10_000  # 900 a second are spent of that, which is 90 %
SECOND = timedelta(seconds=1)
NOON = datetime(2026, 11, 22, 4, tzinfo=UTC)  # in Shanghai
MIDNIGHT = NOON + timedelta(hours=12)


@dataclass
class Desk:
    """A lane of calls; the clock is the test's."""

    connection: Connection
    project: uuid.UUID
    now: datetime = NOON

    def call(self, model: str = MODEL) -> Job:
        """A job that was admitted."""
        (row,) = self.sql(
            "insert into jobs (project_id, kind, model, input, mode, state, run_at, lane_id, account, region)"
            " select :project, 'text', :model, '{}', 'call', 'admitted', :now, id, account, region from lanes"
            " where model = :model returning *",
            project=self.project, model=model, now=self.now,
        )  # fmt: skip
        return Job.of(row)

    def begin(self, job: Job, tokens: int | None) -> Job:
        """The job after its step said that it would send a call of so many tokens."""
        said: dict[str, Any] = {"id": uuid.uuid4(), "number": job.attempts + 1, "request_hash": b""}
        said |= {"owner": "default", "account": "default", "region": "cn-beijing", "model": job.model}
        return moves.record(self.connection, job, Move(State.SUBMITTING, attempt=said | {"tokens": tokens}), self.now)

    def sent(self, tokens: int) -> Job:
        """A call that is out."""
        begun = self.begin(self.call(), tokens)
        assert begun.state == State.SUBMITTING
        return begun

    def answer(self, job: Job, tokens: int) -> None:
        said = {"outcome": "accepted", "tokens": tokens}
        moves.record(self.connection, job, Move(State.COPYING, attempt=said), self.now)

    def refuse(self, job: Job) -> None:
        said = {"outcome": "refused", "tokens": 0}
        moves.record(self.connection, job, Move(State.QUEUED, "refused", attempt=said), self.now)

    def ahead(self, model: str = MODEL) -> float:
        """Seconds until all that is booked is worked off."""
        (row,) = self.sql("select tokens_at - :now as ahead from lanes where model = :model", now=self.now, model=model)
        return float(round(row["ahead"].total_seconds(), 3))

    def shown(self) -> dict[str, Any]:
        (lane,) = [lane for lane in slots.listed(self.connection, self.now) if lane.model == MODEL]
        return reading.LaneDocument.of(lane, is_operator=True).as_json()

    def sql(self, statement: str, **values: Any) -> list[Any]:
        result = self.connection.execute(text(statement), values)
        return list(result.mappings().all()) if result.returns_rows else []


@pytest.fixture
def desk(engine: Engine) -> Iterator[Desk]:
    said = {MODEL: {"tpm": TPM, "tpd": TPD, "rps": 1000, "concurrency": 20}}
    known = Settings.model_validate({"database_url": "", "broker_url": "", "limits": said})
    with engine.begin() as connection:
        slots.sync(connection, catalog.load(), known)
        made = Desk(connection, keys.create_project(connection, "spring").id)
        made.sql("update lanes set next_at = :now, tokens_at = :now", now=NOON)
        yield made


def test_calls_leave_no_faster_than_their_tokens_are_worked_off(desk: Desk) -> None:
    first, second, third = (desk.sent(450) for _ in range(3))

    assert [job.submitted_at for job in (first, second, third)] == [NOON, NOON + 0.5 * SECOND, NOON + SECOND]


def test_a_call_that_would_leave_too_far_ahead_waits_with_its_slot(desk: Desk) -> None:
    desk.sent(4500)
    job = desk.call()

    waits = desk.begin(job, 1)

    assert (waits.state, waits.run_at) == (State.ADMITTED, NOON + 5 * SECOND)
    desk.now = NOON + 4 * SECOND
    assert desk.begin(waits, 1).submitted_at == NOON + 5 * SECOND


def test_in_a_minute_nine_tenths_of_its_tokens_are_sent_evenly(desk: Desk) -> None:
    desk.sql("update lanes set tpd = null")
    sent: list[datetime] = []
    jobs = [desk.call() for _ in range(100)]
    for _ in range(60):
        begun = [desk.begin(job, 1000) for job in jobs[:5]]
        gone = [job for job in begun if job.state == State.SUBMITTING]
        jobs = [job for job in begun if job.state == State.ADMITTED] + jobs[5:]
        sent += [job.submitted_at for job in gone if job.submitted_at]
        desk.now += SECOND

    within = [at for at in sent if at < NOON + 60 * SECOND]
    assert 0.88 * TPM <= 1000 * len(within) <= 0.92 * TPM
    assert min(later - earlier for earlier, later in pairwise(sent)) > SECOND


def test_what_a_call_did_not_take_is_given_back_and_what_it_took_beyond_is_charged(desk: Desk) -> None:
    first, second = desk.sent(900), desk.sent(900)
    assert (desk.ahead(), desk.shown()["tokens"]["today"]) == (2, 1800)

    desk.answer(first, 450)
    assert (desk.ahead(), desk.shown()["tokens"]["today"]) == (1.5, 1350)

    desk.answer(second, 1350)
    assert (desk.ahead(), desk.shown()["tokens"]["today"]) == (2, 1800)


def test_what_is_charged_later_counts_from_then_on(desk: Desk) -> None:
    job = desk.sent(900)
    desk.now += 10 * SECOND

    desk.answer(job, 1800)

    assert desk.ahead() == 1


def test_a_refused_call_used_nothing(desk: Desk) -> None:
    job = desk.sent(900)

    desk.refuse(job)

    assert (desk.ahead(), desk.shown()["tokens"]["today"]) == (0, 0)


def test_an_answer_that_is_told_twice_is_settled_once(desk: Desk) -> None:
    job = desk.sent(900)
    desk.answer(job, 100)

    with pytest.raises(moves.AlreadyRecorded):
        desk.answer(job, 100)

    assert desk.shown()["tokens"]["today"] == 100


def test_a_call_that_was_canceled_before_it_left_used_nothing(desk: Desk) -> None:
    job = desk.call()
    desk.sql("update jobs set cancel_requested = true where id = :id", id=job.id)

    assert desk.begin(job, 900).state == State.CANCELED

    assert (desk.ahead(), desk.shown()["tokens"]["today"]) == (0, 0)


def test_a_spent_day_parks_the_lane_until_midnight_in_shanghai_and_says_so(desk: Desk) -> None:
    desk.answer(desk.sent(TPD - 100), TPD - 100)
    desk.now += timedelta(hours=1)

    job = desk.begin(desk.call(), 101)

    assert job.state == State.QUEUED
    found = reading.waiting_on(desk.connection, [job], desk.now)[job.id]
    assert found is not None
    assert (found.code, f"{TPD} tokens a day" in found.detail) == ("quota", True)
    assert found.until is not None
    assert timedelta(minutes=1) <= found.until - MIDNIGHT <= timedelta(minutes=5)
    assert fair_queue.admit(desk.connection, desk.now) == 0
    desk.now = found.until
    assert fair_queue.admit(desk.connection, desk.now) == 1
    assert desk.begin(Job.of(desk.sql("select * from jobs where id = :id", id=job.id)[0]), 101).state == "submitting"
    assert desk.shown()["tokens"]["today"] == 101


def test_a_call_that_wants_more_than_is_left_waits_alone_until_midnight(desk: Desk) -> None:
    desk.answer(desk.sent(TPD // 2), TPD // 2)
    desk.now += timedelta(hours=1)

    waits = desk.begin(desk.call(), TPD // 2 + 1)

    assert waits.state == State.QUEUED
    assert fair_queue.admit(desk.connection, desk.now) == 0
    assert desk.begin(desk.call(), TPD // 2).state == State.SUBMITTING
    desk.now = MIDNIGHT + SECOND
    assert fair_queue.admit(desk.connection, desk.now) == 1


def test_a_call_that_the_day_has_no_room_for_says_so_and_goes_once_it_has(desk: Desk) -> None:
    desk.answer(desk.sent(TPD // 2), TPD // 2)
    desk.now += timedelta(hours=1)
    waits = desk.begin(desk.call(), TPD // 2 + 1)
    found = reading.waiting_on(desk.connection, [waits], desk.now)[waits.id]
    assert found is not None
    assert (found.code, "tokens a day" in found.detail) == ("quota", True)

    desk.sql("update lanes set tpd = tpd + 1")

    assert fair_queue.admit(desk.connection, desk.now) == 1
    (admitted,) = desk.sql("select * from jobs where id = :id", id=waits.id)
    assert desk.begin(Job.of(admitted), TPD // 2 + 1).state == State.SUBMITTING


def test_a_lane_that_is_booked_for_days_is_asked_again_within_a_minute(desk: Desk) -> None:
    desk.sql("update lanes set tokens_at = :far, tpd = null", far=desk.now + timedelta(days=7))

    waits = desk.begin(desk.call(), 1)

    assert waits.run_at is not None
    assert waits.run_at <= desk.now + timedelta(minutes=1)
    assert (waits.state, fair_queue.admit(desk.connection, desk.now)) == (State.QUEUED, 0), "it would wait with a slot"
    found = reading.waiting_on(desk.connection, [waits], desk.now)[waits.id]
    assert found is not None
    assert (found.code, found.until) == ("rate", desk.now + timedelta(days=7))
    desk.sql("update lanes set tokens_at = :now", now=desk.now)
    assert fair_queue.admit(desk.connection, desk.now) == 1


def test_limits_that_are_raised_lift_what_was_booked_and_parked_under_the_old_ones(desk: Desk) -> None:
    far = datetime.now(UTC) + timedelta(days=7)
    desk.sql("update lanes set tokens_at = :far, next_at = :far, parked_until = :far, parked_why = 'spent'", far=far)
    more = {MODEL: {"tpm": TPM, "tpd": 10 * TPD, "rps": 1000, "concurrency": 20}}
    known = Settings.model_validate({"database_url": "", "broker_url": "", "limits": more})

    slots.sync(desk.connection, catalog.load(), known)

    (lane,) = desk.sql("select * from lanes where model = :model", model=MODEL)
    assert lane["parked_until"] is None
    assert max(lane["tokens_at"], lane["next_at"]) <= datetime.now(UTC)
    (other,) = desk.sql("select * from lanes where model = :model", model=UNLIMITED)
    assert other["parked_until"] == far, "its limits are the same"


def test_no_call_books_more_tokens_than_its_models_window(desk: Desk) -> None:
    model = catalog.load().model(MODEL)

    booked = create._tokens(model, Usage({"input_tokens": 10**12, "output_tokens": 10**12}))

    assert booked == model.context


def test_what_fits_the_rest_of_a_day_goes(desk: Desk) -> None:
    desk.answer(desk.sent(TPD - 100), TPD - 100)
    desk.now += timedelta(hours=1)

    assert desk.begin(desk.call(), 100).state == State.SUBMITTING


def test_while_calls_are_out_that_may_give_tokens_back_the_lane_is_not_parked(desk: Desk) -> None:
    out, job = desk.sent(TPD), desk.call()
    desk.now += timedelta(minutes=1)

    waits = desk.begin(job, 100)
    assert (waits.state, waits.run_at) == (State.ADMITTED, desk.now + 5 * SECOND)

    desk.answer(out, TPD // 2)
    assert desk.begin(waits, 100).state == State.SUBMITTING


def test_a_call_of_more_than_a_days_tokens_goes_first_thing_in_a_day_for_the_provider_to_say_what_it_thinks(
    desk: Desk,
) -> None:
    assert desk.begin(desk.call(), TPD + 1).state == State.SUBMITTING


def test_an_answer_of_yesterdays_call_leaves_todays_count_alone(desk: Desk) -> None:
    desk.now = MIDNIGHT - SECOND
    desk.sql("update lanes set tokens_at = :now", now=desk.now)
    late = desk.sent(5000)
    desk.now = MIDNIGHT + timedelta(minutes=1)
    desk.answer(desk.sent(300), 300)

    desk.answer(late, 1)

    assert desk.shown()["tokens"]["today"] == 300


def test_of_a_lane_without_such_limits_nothing_is_booked_and_nothing_asked(desk: Desk) -> None:
    statements: list[str] = []
    event.listen(desk.connection, "before_cursor_execute", lambda *said: statements.append(said[2]))

    begun = desk.begin(desk.call(UNLIMITED), 5000)
    desk.answer(begun, 4000)

    assert desk.ahead(UNLIMITED) == 0
    assert len([one for one in statements if "UPDATE lanes" in one]) == 1
    (lane,) = desk.sql("select day, day_tokens from lanes where model = :model", model=UNLIMITED)
    assert (lane["day"], lane["day_tokens"]) == (None, 0)


def test_a_lane_shows_its_tokens(desk: Desk) -> None:
    desk.sent(1800)
    desk.now += SECOND

    assert desk.shown()["tokens"] == {"per_minute": TPM, "ahead": 900, "per_day": TPD, "today": 1800}
