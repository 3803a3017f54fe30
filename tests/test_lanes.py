"""Lanes: throttling answers slow and release, accounts stop and are tried, and what a person pauses stays so."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from serving import served
from sqlalchemy import Connection, Engine, text
from stage import CLIP, Stage, stage

from ops import cli
from ops.sandbox.options import Limits, Options, OverConcurrency
from ops.sandbox.testing import Sandbox, running
from worker import catalog, keys, moves, settings
from worker.dashscope.errors import Scope
from worker.errors import NotFound
from worker.lanes import account_stops, slots, throttle
from worker.moves import fair_queue
from worker.states import Move, State
from worker.tables import Job

MODEL, OTHER = "wan2.5-t2v-preview", "wan2.2-t2v-plus"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def reserve(connection: Connection, job: Job, now: datetime) -> datetime | None:
    """The instant that is booked for the job's create; None: it has to wait."""
    statement, said = slots.reserving(connection, job, None, now)
    row = connection.execute(statement, said).one_or_none()
    return row.at if row else None


@dataclass
class Mill:
    """A lane against a provider of which only the limit is real; the clock is the test's.

    `take` is how many tasks the provider has at once. Creates leave as the lane says, and last `task`.
    """

    connection: Connection
    take: int
    task: timedelta = SECOND
    now: datetime = NOW
    made: int = 0
    refused: int = 0
    step: timedelta = SECOND

    def run(self, span: timedelta) -> tuple[int, int]:
        """(tasks made, creates refused) within the span."""
        made, refused, until = self.made, self.refused, self.now + span
        while self.now < until:
            self.now += self.step
            self._end()
            fair_queue.admit(self.connection, self.now)
            for job in self._in(State.ADMITTED):
                self._create(job)
        return self.made - made, self.refused - refused

    def lane(self) -> Any:
        (lane,) = [lane for lane in slots.listed(self.connection, self.now) if lane.model == MODEL]
        return lane

    def _create(self, job: Job) -> None:
        at = reserve(self.connection, job, self.now)
        if at is None:
            if slots.obstacle(self.connection, job, None, self.now).again_at is None:
                self._move(job, State.QUEUED, lane_id=None)
            return
        job.submitted_at = at
        if len(self._in(State.RUNNING)) < self.take:
            self.made += 1
            self._move(job, State.RUNNING, submitted_at=at)
        else:
            self.refused += 1
            self._move(job, State.QUEUED, lane_id=None)
            throttle.slow(self.connection, job, Scope.RATE, self.now + 5 * SECOND, "too fast", self.now)

    def _end(self) -> None:
        self.sql(
            "update jobs set state = 'succeeded', finished_at = :now, run_at = null"
            " where state = 'running' and submitted_at <= :ended",
            now=self.now,
            ended=self.now - self.task,
        )

    def _in(self, state: State) -> list[Job]:
        return [Job.of(row) for row in self.sql("select * from jobs where state = :state order by id", state=state)]

    def _move(self, job: Job, state: State, **columns: Any) -> None:
        sets = ", ".join(["state = :state", *(f"{name} = :{name}" for name in columns)])
        self.sql(f"update jobs set {sets} where id = :id", state=state, id=job.id, **columns)

    def sql(self, statement: str, **values: Any) -> list[Any]:
        result = self.connection.execute(text(statement), values)
        return list(result.mappings().all()) if result.returns_rows else []


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    known = settings.Settings.model_validate({"database_url": "", "broker_url": ""})
    with engine.begin() as connection:
        slots.sync(connection, catalog.load(), known)
        connection.execute(text("update lanes set next_at = :now, tokens_at = :now"), {"now": NOW})
        yield connection


def queue(connection: Connection, count: int) -> None:
    project = keys.create_project(connection, "spring")
    connection.execute(
        text(
            "insert into jobs (project_id, kind, model, input, rank_at, run_at, sequence)"
            " select :project, 'text-to-video', :model, '{}', :now, :now, 1 from generate_series(1, :count)"
        ),
        {"project": project.id, "model": MODEL, "now": NOW, "count": count},
    )


def mill(connection: Connection, concurrency: int, take: int, task: timedelta, jobs: int) -> Mill:
    queue(connection, jobs)
    made = Mill(connection, take, task)
    made.sql("update lanes set concurrency = :many, interval_us = 50000, next_at = :now", many=concurrency, now=NOW)
    return made


def test_a_limit_that_is_halved_costs_few_refusals_and_comes_back_within_two_minutes(connection: Connection) -> None:
    runs = mill(connection, concurrency=30, take=30, task=10 * SECOND, jobs=900)
    full, refused = runs.run(40 * SECOND)
    assert refused == 0

    runs.take = 15
    runs.run(60 * SECOND)
    made, refused = runs.run(120 * SECOND)
    assert made >= 0.45 * 3 * full
    assert refused <= 0.01 * made
    assert runs.lane().ceiling == 15

    runs.take = 30
    runs.run(120 * SECOND)
    again, refused = runs.run(40 * SECOND)
    assert again >= 0.9 * full
    assert refused == 0


def test_a_provider_that_takes_fewer_than_configured_is_asked_for_more_ever_less_often(connection: Connection) -> None:
    runs = mill(connection, concurrency=5, take=2, task=60 * SECOND, jobs=200)
    runs.step = 5 * SECOND

    _, first = runs.run(timedelta(minutes=6))
    _, later = runs.run(timedelta(minutes=30))

    assert first <= 8
    assert later <= 6
    assert runs.lane().ceiling == 2


def test_a_lane_that_is_slowed_is_fast_again_after_a_while(connection: Connection) -> None:
    queue(connection, 1)
    fair_queue.admit(connection, NOW)
    (row,) = connection.execute(text("select * from jobs")).mappings()
    job = Job.of(row)
    job.submitted_at = NOW

    def pace(at: timedelta) -> float:
        (lane,) = [lane for lane in slots.listed(connection, NOW + at) if lane.model == MODEL]
        return float(round(lane.pace_now, 3))

    throttle.slow(connection, job, Scope.RATE, NOW + 5 * SECOND, "too fast", NOW + SECOND)
    assert [pace(seconds * SECOND) for seconds in (1, 60, 61, 66, 76, 81, 200)] == [0.5, 0.5, 0.6, 0.7, 0.9, 1, 1]

    throttle.slow(connection, job, Scope.RATE, NOW + 5 * SECOND, "too fast", NOW + 2 * SECOND)
    assert pace(2 * SECOND) == 0.5  # it left before the lane was slowed, so its answer is no news

    job.submitted_at = NOW + 3 * SECOND
    throttle.slow(connection, job, Scope.BURST, NOW + 9 * SECOND, "too fast", NOW + 4 * SECOND)
    assert pace(4 * SECOND) == 0.125


def test_a_lane_that_regains_too_much_goes_back_by_a_fifth(connection: Connection) -> None:
    queue(connection, 1)
    fair_queue.admit(connection, NOW)
    (row,) = connection.execute(text("select * from jobs")).mappings()
    job = Job.of(row)

    def slowed(at: timedelta) -> float:
        job.submitted_at = NOW + at - SECOND
        throttle.slow(connection, job, Scope.RATE, NOW + at, "too fast", NOW + at)
        (lane,) = [lane for lane in slots.listed(connection, NOW + at) if lane.model == MODEL]
        return float(round(lane.pace_now, 3))

    assert slowed(0 * SECOND) == 0.5
    assert slowed(62 * SECOND) == 0.48
    assert slowed(70 * SECOND) == 0.24  # it regained nothing in between
    assert slowed(timedelta(hours=1)) == 0.5


def test_a_refusal_that_may_be_for_its_rate_or_for_too_many_at_once_costs_ten_seconds_of_either(
    connection: Connection,
) -> None:
    runs = mill(connection, concurrency=8, take=8, task=timedelta(hours=1), jobs=8)
    runs.run(SECOND)
    runs.sql("update lanes set concurrency = 20")
    (first, *_) = runs._in(State.RUNNING)

    def refuse() -> tuple[int, int]:
        first.submitted_at = runs.now
        runs.sql("update jobs set submitted_at = :now where state = 'running'", now=runs.now)
        throttle.slow(connection, first, Scope.RATE, runs.now, "too fast", runs.now)
        return allowed(0), allowed(10)

    def allowed(seconds: int) -> int:
        (lane,) = [lane for lane in slots.listed(connection, runs.now + seconds * SECOND) if lane.model == MODEL]
        return int(lane.allowed)

    assert refuse() == (8, 9)
    runs.now += 11 * SECOND
    assert refuse() == (8, 8)  # with as many in flight again: so it is the tasks at once
    assert (allowed(109), allowed(110)) == (8, 9)


@pytest.mark.parametrize("ceiling", [1, 3])
def test_a_learned_ceiling_of_n_is_n_in_flight_though_more_were_admitted(connection: Connection, ceiling: int) -> None:
    runs = mill(connection, concurrency=10, take=100, task=timedelta(hours=1), jobs=40)
    runs.sql("update lanes set interval_us = 0")
    assert fair_queue.admit(connection, NOW) == 10
    runs.sql("update lanes set ceiling = :n, ceiling_at = :now", n=ceiling, now=NOW)

    made = [runs.run(SECOND)[0] for _ in range(30)]

    assert made == [ceiling] + [0] * 29
    assert runs.sql("select count(*) as n from jobs where state = 'admitted'")[0]["n"] == 0, "they wait in the line"


def test_tasks_that_are_taken_over_a_ceiling_raise_it_at_once(connection: Connection) -> None:
    runs = mill(connection, concurrency=50, take=50, task=timedelta(hours=1), jobs=60)
    runs.sql("update lanes set ceiling = 5, ceiling_at = :now, interval_us = 0", now=NOW - timedelta(seconds=110))

    made = [runs.run(SECOND)[0] for _ in range(6)]

    assert made == [6, 2, 4, 8, 16, 14]


def test_a_create_waits_longer_behind_the_last_one_at_half_the_pace(connection: Connection) -> None:
    queue(connection, 1)
    fair_queue.admit(connection, NOW)
    (row,) = connection.execute(text("select * from jobs")).mappings()
    connection.execute(text("update lanes set interval_us = 100000, next_at = :now"), {"now": NOW})
    reserve(connection, Job.of(row), NOW)
    full = reserve(connection, Job.of(row), NOW)
    connection.execute(text("update lanes set pace = 0.5, paced_at = :now, next_at = :now"), {"now": NOW})
    reserve(connection, Job.of(row), NOW)
    half = reserve(connection, Job.of(row), NOW)

    assert full == NOW + timedelta(milliseconds=100)
    assert half == NOW + timedelta(milliseconds=200)


@pytest.mark.parametrize(
    ("said", "per_second"), [({"rps": 2, "rpm": 60}, 0.9), ({"rpm": 600}, 9), ({"rps": 2}, 1.8), ({}, 4.5)]
)
def test_of_a_rate_by_the_second_and_one_by_the_minute_the_lower_counts(
    said: dict[str, Any], per_second: float
) -> None:
    known = settings.Settings.model_validate({"database_url": "", "broker_url": "", "limits": {MODEL: said}})

    limits = slots.limits(known, catalog.load().model(MODEL), "cn-beijing", None)

    assert 1e6 / limits["interval_us"] == pytest.approx(per_second, rel=1e-3)


def code(play: Stage, job: Job) -> str | None:
    waiting = play.document(job)["waiting_on"]
    return str(waiting["code"]) if waiting else None


def creates(play: Stage) -> int:
    count: int = play.sandbox.ledger()["totals"]["creates"]
    return count


def change(play: Stage, what: str, name: str, pausing: bool) -> None:
    with play.ctx.engine.begin() as connection:
        account_stops.pause(connection, what, name, play.now() if pausing else None)


PAUSES = [("project", "spring-campaign"), ("lane", MODEL), ("all", "")]


@pytest.mark.parametrize(("what", "name"), PAUSES)
def test_what_is_paused_waits_and_goes_on_when_it_is_resumed(play: Stage, what: str, name: str) -> None:
    change(play, what, name, pausing=True)
    job = play.submit()

    play.play(play.tick())

    assert play.job(job).state == State.QUEUED
    assert code(play, job) == "paused"
    change(play, what, name, pausing=False)
    assert play.until(job).state == State.SUCCEEDED


@pytest.mark.parametrize(("what", "name"), PAUSES)
def test_an_admitted_job_is_not_sent_after_a_pause_and_what_runs_goes_on(play: Stage, what: str, name: str) -> None:
    runs = play.until(play.submit(), State.RUNNING)
    admitted = play.submit()
    messages = play.tick()
    assert play.job(admitted).state == State.ADMITTED

    change(play, what, name, pausing=True)
    play.play(messages)

    assert play.job(admitted).state == State.QUEUED
    assert creates(play) == 1
    assert play.until(runs).state == State.SUCCEEDED
    assert code(play, admitted) == "paused"
    change(play, what, name, pausing=False)
    assert play.until(admitted).state == State.SUCCEEDED


def test_there_is_nothing_to_pause_of_an_unknown_name(play: Stage) -> None:
    for what in ("project", "lane"):
        with pytest.raises(NotFound):
            change(play, what, "nobody", pausing=True)


def test_another_project_goes_on_while_one_is_paused(play: Stage) -> None:
    with play.ctx.engine.begin() as connection:
        other = keys.create_project(connection, "summer")
    change(play, "project", "spring-campaign", pausing=True)
    paused, job = play.submit(), play.submit(project=other)

    assert play.until(job).state == State.SUCCEEDED
    assert play.job(paused).state == State.QUEUED


def test_a_spent_free_quota_stops_its_model_alone_until_a_person_acts(play: Stage) -> None:
    play.sandbox.fault(where="create", what="error", code="AllocationQuota.FreeTierOnly", model=MODEL)
    job, other = play.submit(), play.submit(model=OTHER, input={"prompt": "a dog"})

    assert play.until(other).state == State.SUCCEEDED
    play.drive(lambda: code(play, job), lambda found: found == "quota")

    waiting = play.document(job)["waiting_on"]
    assert "free tier" in waiting["detail"]
    assert waiting["until"] is None
    play.sandbox.clear_faults()
    with play.ctx.engine.begin() as connection:
        throttle.forget(connection, MODEL)
    assert play.until(job).state == State.SUCCEEDED


def test_a_daily_quota_parks_the_lane_until_midnight_in_shanghai(play: Stage) -> None:
    message = "You have exceeded your daily quota."
    play.sandbox.fault(where="create", what="error", code="Throttling", message=message, status=429, times=1)
    job = play.submit()

    play.drive(lambda: code(play, job), lambda found: found == "quota")

    until = datetime.fromisoformat(play.document(job)["waiting_on"]["until"]) + timedelta(hours=8)
    assert (until.hour, until.minute // 6) == (0, 0)


@pytest.mark.parametrize("words", ["Throttling.AllocationQuota", "ModelServingError", "Throttling.BurstRate"])
def test_a_lane_that_is_throttled_is_parked_for_less_than_a_minute(play: Stage, words: str) -> None:
    play.sandbox.fault(where="create", what="error", code=words, status=429, times=1)
    job = play.submit()

    play.drive(lambda: code(play, job), lambda found: found == "quota")

    until = datetime.fromisoformat(play.document(job)["waiting_on"]["until"])
    assert timedelta(0) < until - play.now() < timedelta(minutes=1)


BUDGET = "The budget configured in Budget Management has been exhausted."


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ({"code": "Arrearage"}, "top it up"),
        ({"code": "BudgetExhausted"}, "raise it"),
        ({"code": "Throttling", "status": 429, "message": BUDGET}, "raise it"),
    ],
    ids=["arrears", "budget", "budget without a code of its own"],
)
def test_a_stop_raises_one_alarm_however_many_jobs_are_turned_away(
    environment: dict[str, str], sandbox: Sandbox, httpserver: HTTPServer, said: dict[str, Any], advice: str
) -> None:
    httpserver.expect_request("/alarm", method="POST").respond_with_data("ok")
    with stage(environment, sandbox, alert_url=httpserver.url_for("/alarm")) as play:
        sandbox.fault(where="create", what="error", **said)
        jobs = [play.submit() for _ in range(3)]
        messages = play.tick()
        taken = [play.spend(claim.id, claim.number) for message in messages for claim in message.claims]
        steps = [play.step(job) for job in taken]
        begun = [play.ctx.record(job, next(step), clock) for job, (step, clock) in zip(taken, steps, strict=True)]
        for job, (step, clock) in zip(begun, steps, strict=True):  # all three calls are out, and refused
            play.ctx.record(job, step.send(job), clock)  # type: ignore[attr-defined]

        play.drive(play.deliveries, lambda found: found and all(one.state == "delivered" for one in found))

        assert creates(play) == 3
        ((request, _),) = httpserver.log
        alarm = json.loads(request.get_data())
        assert alarm["type"] == "account.stopped"
        assert advice in alarm["data"]["why"]
        assert {code(play, job) for job in jobs} == {"account"}


def test_a_stopped_account_tries_one_job_each_five_minutes_and_starts_when_it_passes(play: Stage) -> None:
    play.sandbox.fault(where="create", what="error", code="InvalidApiKey")
    jobs = [play.submit() for _ in range(3)]
    play.drive(lambda: code(play, jobs[0]), lambda found: found == "account")
    play.play(play.tick())
    before = creates(play)

    for tried in (1, 2):
        play.sql("update owners set stopped_until = now()")
        for _ in range(3):
            play.play(play.tick())
        assert creates(play) == before + tried

    play.sandbox.clear_faults()
    play.sql("update owners set stopped_until = now()")
    for job in jobs:
        assert play.until(job).state == State.SUCCEEDED
    assert play.sql("select stopped_at, stopped_why from owners") == [{"stopped_at": None, "stopped_why": None}]


def test_only_one_try_is_under_way_at_a_time(play: Stage) -> None:
    with play.ctx.engine.begin() as connection:
        account_stops.stop(connection, "default", play.now(), "arrears", play.now())
    for _ in range(3):
        play.submit()
    play.tick()

    play.sql("update owners set stopped_until = now()")
    play.tick()

    assert play.sql("select count(*) as n from jobs where state = 'admitted'") == [{"n": 1}]


@pytest.mark.parametrize(
    "why",
    ["paused_at = now()", "max_in_flight = 1", "account = 'another'"],
)
def test_a_lane_whose_jobs_may_not_go_leaves_the_try_of_a_stopped_account_to_the_next(play: Stage, why: str) -> None:
    lanes = {row["model"]: row["id"] for row in play.sql("select model, id from lanes")}
    first, second = sorted(("wan2.5-t2v-preview", OTHER), key=lambda name: lanes[name])
    with play.ctx.engine.begin() as connection:
        theirs = keys.create_project(connection, "summer-campaign")
        account_stops.stop(connection, "default", play.now(), "arrears", play.now())
    busy = play.submit(model=OTHER, project=theirs)
    in_flight = "state = 'running', account = 'default', run_at = now() + interval '1 h'"
    play.sql(f"update jobs set {in_flight}, lane_id = :lane where id = :id", id=busy.id, lane=lanes[OTHER])
    play.sql(f"update projects set {why} where id = :id", id=theirs.id)
    play.submit(model=first, project=theirs)
    mine = play.submit(model=second)
    play.sql("update owners set stopped_until = now()")

    play.tick()

    assert play.job(mine).state == State.ADMITTED


def test_an_admitted_job_is_not_sent_once_its_account_is_stopped(play: Stage) -> None:
    job = play.submit()
    messages = play.tick()
    with play.ctx.engine.begin() as connection:
        account_stops.stop(connection, "default", play.now() + timedelta(minutes=5), "arrears", play.now())

    play.play(messages)

    assert creates(play) == 0
    assert code(play, job) == "account"
    with play.ctx.engine.begin() as connection:
        account_stops.resume_accounts(connection, "default")
    assert play.until(job).state == State.SUCCEEDED


def test_a_cancel_while_the_lane_closes_ends_the_job(play: Stage) -> None:
    job = play.submit()
    messages = play.tick()
    taken = [play.spend(claim.id, claim.number) for message in messages for claim in message.claims]
    step, clock = play.step(taken[0])
    move = next(step)
    change(play, "all", "", pausing=True)
    assert play.cancel(job) == "requested"

    ended = play.ctx.record(taken[0], move, clock)

    assert ended.state == State.CANCELED
    assert creates(play) == 0


def test_tasks_that_run_are_never_more_than_the_provider_takes(environment: dict[str, str]) -> None:
    options = Options(
        run_seconds=0.3, queue_seconds=0, over_concurrency=OverConcurrency.REFUSE, limits={MODEL: Limits(concurrency=2)}
    )
    with running(options) as sandbox, stage(environment, sandbox, limits={MODEL: {"rps": 100}}) as play:
        jobs = [play.submit() for _ in range(8)]

        def step() -> list[str]:
            play.sql("update lanes set parked_until = null")
            return [play.job(job).state for job in jobs]

        play.drive(step, lambda found: set(found) == {"succeeded"})

        assert sandbox.ledger()["totals"]["tasks"] == 8
        assert len([one for job in jobs for one in play.attempts(job) if one.outcome == "refused"]) <= 12


def test_a_lane_shows_what_is_allowed_in_use_and_waits_and_to_a_project_its_own(play: Stage) -> None:
    with play.ctx.engine.begin() as connection:
        other = keys.create_project(connection, "summer")
    for _ in range(4):
        play.submit()
    for _ in range(3):
        play.submit(project=other, input=CLIP)
    play.tick()

    def shown(project: uuid.UUID | None) -> tuple[int, int]:
        with play.ctx.engine.connect() as connection:
            (lane,) = [lane for lane in slots.listed(connection, play.now(), project) if lane.model == MODEL]
        return lane.in_use, lane.queued

    assert shown(None) == (5, 2)
    assert tuple(sum(both) for both in zip(shown(play.project.id), shown(other.id), strict=True)) == (5, 2)


def test_the_api_shows_an_operator_all_and_a_project_its_own(environment: dict[str, str], sandbox: Sandbox) -> None:
    with stage(environment, sandbox) as play, served(environment) as api:
        for _ in range(7):
            play.submit()
        play.tick()

        def shown(project: str | None) -> dict[str, Any]:
            with api.http(api.key(project)) as http:
                found = http.get("/v1/limits").json()["data"]
            (lane,) = [lane for lane in found if lane["model"] == MODEL]
            return {name: lane[name] for name in ("account", "in_use", "queued", "concurrency", "allowed", "pace")}

        full = {"concurrency": 5, "allowed": 5, "pace": 1.0}
        assert shown(None) == {"account": "default", "in_use": 5, "queued": 2, **full}
        assert shown("spring-campaign") == {"account": None, "in_use": 5, "queued": 2, **full}
        assert shown("summer") == {"account": None, "in_use": 0, "queued": 0, **full}


def test_a_person_sees_pauses_and_resumes_by_command(
    play: Stage, environment: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NORIA_DATABASE_URL", environment["NORIA_DATABASE_URL"])
    monkeypatch.setenv("COLUMNS", "120")

    def noria(*said: str) -> str:
        assert cli.run(said) == cli.Code.DONE
        return capsys.readouterr().out

    play.submit()
    assert MODEL in noria("lanes")
    assert OTHER not in noria("lanes")
    assert "0% a" in noria("lanes", "--all")  # of the tokens of models that have such a limit
    for paused, where in ((("lane", MODEL), "lane"), (("all",), "all"), (("project", "spring-campaign"), "project")):
        assert json.loads(noria("pause", *paused, "--json"))["paused"] == where
        play.play(play.tick())
        assert creates(play) == 0
        assert json.loads(noria("resume", *paused, "--json"))["resumed"] == where
    noria("pause", "lane", OTHER)
    (stopped,) = [lane for lane in json.loads(noria("lanes", "--json")) if lane["waiting_on"]]
    assert (stopped["model"], stopped["waiting_on"]["code"]) == (OTHER, "paused")
    with play.ctx.engine.begin() as connection:
        account_stops.stop(connection, "default", play.now() + timedelta(minutes=5), "arrears", play.now())
    assert "arrears" in noria("lanes")
    noria("resume", "account", "default")
    noria("lanes", "resume")
    (still,) = [lane for lane in json.loads(noria("lanes", "--json")) if lane["waiting_on"]]
    assert still == stopped  # what a person paused only a person resumes


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (("pause", "project"), 2),
        (("pause", "all", "spring"), 2),
        (("pause", "project", "nobody"), 5),
        (("resume", "account", "nobody"), 5),
        (("lanes", "resume", "nothing"), 5),
    ],
)
def test_a_command_that_names_nothing_says_so(
    engine: Engine, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, said: tuple[str, ...], code: int
) -> None:
    monkeypatch.setenv("NORIA_DATABASE_URL", environment["NORIA_DATABASE_URL"])

    assert cli.run(said) == code


# Two creates of a lane at once


Act = Callable[[Connection], str]


@pytest.fixture
def quick(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    with stage(environment, sandbox, limits={MODEL: {"concurrency": 5, "rps": 100}}) as made:
        yield made


def beside(play: Stage, state: State) -> tuple[Act, Act, Job]:
    """What puts the create calls of two jobs on record, and the second; a third of their lane is in that state.

    Each act comes back with the state that its job comes to.
    """
    third, one, two = (play.submit() for _ in range(3))
    numbers = {claim.id: claim.number for message in play.tick() for claim in message.claims}
    play.sql(
        "update jobs set state = :state, claimed = null, run_at = now() + interval '1 h' where id = :id",
        state=state, id=third.id,
    )  # fmt: skip
    taken = [play.spend(job.id, numbers[job.id]) for job in (one, two)]
    first, second = (partial(_begun, play, job, next(play.step(job)[0])) for job in taken)
    return first, second, taken[1]


def at_once(play: Stage, first: Act, second: Act) -> tuple[str, str]:
    """What becomes of two acts, of which the second waits for the lane's row until the first is committed."""
    with ThreadPoolExecutor(1) as pool:
        with play.ctx.engine.begin() as connection:
            became = first(connection)
            waiting = pool.submit(_committed, play, second)
            _wait_for_a_lock(play)
        return became, waiting.result(10)


def _begun(play: Stage, job: Job, move: Move, connection: Connection) -> str:
    return moves.record(connection, job, move, play.now()).state


def _committed(play: Stage, act: Callable[[Connection], str]) -> str:
    with play.ctx.engine.begin() as connection:
        return act(connection)


def _wait_for_a_lock(play: Stage) -> None:
    deadline = time.monotonic() + 5
    while not play.sql("select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"):
        assert time.monotonic() < deadline, "the second create waited for nothing"
        time.sleep(0.01)


def test_of_two_creates_at_once_beside_an_uncertain_job_one_goes(quick: Stage) -> None:
    first, second, _ = beside(quick, State.UNCERTAIN)

    assert at_once(quick, first, second) == (State.SUBMITTING, State.ADMITTED)


def test_of_two_creates_at_once_below_a_learned_ceiling_as_many_go_as_it_takes(quick: Stage) -> None:
    first, second, _ = beside(quick, State.RUNNING)
    quick.sql("update lanes set ceiling = 2, ceiling_at = now()")

    assert at_once(quick, first, second) == (State.SUBMITTING, State.QUEUED)


def test_a_ceiling_counts_what_went_out_while_the_refusal_waited_for_the_lane(quick: Stage) -> None:
    first, _, refused = beside(quick, State.RUNNING)

    def slowed(connection: Connection) -> str:
        throttle.slow(connection, refused, Scope.RATE, quick.now(), "too many", quick.now())
        return "slowed"

    at_once(quick, first, slowed)

    assert [row["ceiling"] for row in quick.sql("select ceiling from lanes where ceiling is not null")] == [2]


def test_an_account_that_is_added_while_all_is_paused_does_not_begin(play: Stage) -> None:
    play.sql("delete from lanes")
    play.sql("delete from owners")
    play.sql("insert into owners (name, paused_at) values ('the first', now())")
    with play.ctx.engine.begin() as connection:
        slots.sync(connection, play.ctx.catalog, play.ctx.settings)
    job = play.submit()

    play.play(play.tick())

    assert (play.job(job).state, creates(play)) == (State.QUEUED, 0)
