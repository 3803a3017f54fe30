"""Schedules: exactly one run a fire time, whatever clocks do. Time is an argument; the clock is the test's."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select, text
from structlog.testing import capture_logs

from worker import catalog, keys, tick
from worker.errors import MOST_FAULTS, Conflict, NotFound
from worker.schedules import clock as cron
from worker.schedules import fire as firing
from worker.schedules import plan as plans
from worker.schedules.fire import FireContext, Made
from worker.schedules.plan import Plan
from worker.settings import Settings
from worker.tables import Project, Schedule

START = datetime(2026, 11, 20, 0, 0, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
TEMPLATE: dict[str, Any] = {
    "kind": "text-to-video",
    "model": "wan2.5-t2v-preview",
    "input": {"prompt": "{{since}} to {{until}}"},
}
HOURLY = Plan("hourly", "0 * * * *", "UTC", TEMPLATE)
CATALOG = catalog.load()


@dataclass
class Clockwork:
    """A project with schedules, and whoever fires them."""

    engine: Engine
    project: Project
    settings: Settings

    def make(self, plan: Plan = HOURLY, now: datetime = START) -> Schedule:
        with self.engine.begin() as connection:
            return plans.make(connection, self.project, plan, 100, now)[0]

    def fire(self, now: datetime) -> list[str]:
        """The prompts of the jobs that were submitted."""
        made = firing.fire_due(self.engine, CATALOG, self.settings, now)
        return [job.input["prompt"] for job in made]

    def run_now(self, schedule: Schedule, now: datetime, key: str | None = None) -> Made:
        with self.engine.begin() as connection:
            held = plans.locked(connection, self.project.id, schedule.id)
            return firing.run_now(FireContext(connection, CATALOG, self.settings, now), held, key)

    def change(self, schedule: Schedule, now: datetime, **said: Any) -> Schedule:
        with self.engine.begin() as connection:
            held = plans.locked(connection, self.project.id, schedule.id)
            return plans.change(connection, held, replace(Plan.of(held), **said), now)

    def pause(self, schedule: Schedule, now: datetime) -> None:
        with self.engine.begin() as connection:
            plans.pause(connection, plans.locked(connection, self.project.id, schedule.id), now)

    def resume(self, schedule: Schedule, now: datetime) -> Schedule:
        with self.engine.begin() as connection:
            return plans.resume(connection, plans.locked(connection, self.project.id, schedule.id), now)

    def look(self, schedule: Schedule) -> Schedule:
        with self.engine.connect() as connection:
            return plans.one(connection, self.project.id, schedule.id)

    def runs(self, schedule: Schedule) -> list[tuple[str, str, str]]:
        """Fire time, trigger and outcome of each run, the first one first."""
        rows = self.sql("select * from runs where schedule_id = :id order by fire_at", id=schedule.id)
        return [(f"{row['fire_at'].astimezone(UTC):%d %H:%M}", row["trigger"], row["outcome"]) for row in rows]

    def why(self, schedule: Schedule) -> str:
        """Of the last run."""
        (row,) = self.sql("select why from runs where schedule_id = :id order by fire_at desc limit 1", id=schedule.id)
        return str(row["why"])

    def end_jobs(self) -> None:
        """All jobs have succeeded."""
        self.sql(
            "update jobs set state = 'succeeded', run_at = null, finished_at = created_at where finished_at is null"
        )

    def sql(self, statement: str, **values: Any) -> list[Any]:
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result.mappings()) if result.returns_rows else []


@pytest.fixture
def clock(engine: Engine) -> Clockwork:
    known = Settings.model_validate({"database_url": "", "broker_url": "", "max_waiting": 20})
    with engine.begin() as connection:
        project = keys.create_project(connection, "spring")
    return Clockwork(engine, project, known)


class TestFireTimes:
    """Debian's rules where clocks change, in real zones."""

    @pytest.mark.parametrize(
        ("expression", "zone", "start", "times"),
        [
            # skipped: 02:30 does not exist on March 8; it fires when the gap ends
            ("30 2 * * *", "America/New_York", "2026-03-07 05:00", ["07 07:30", "08 07:00", "09 06:30"]),
            ("30 2 * * *", "Europe/Berlin", "2026-03-28 00:00", ["28 01:30", "29 01:00", "30 00:30"]),
            # half an hour is skipped there
            ("15 2 * * *", "Australia/Lord_Howe", "2026-10-02 20:00", ["03 15:30", "04 15:15"]),
            # two local times in the gap are one instant, and one fire time
            ("15,45 2 * * *", "America/New_York", "2026-03-08 05:00", ["08 07:00", "09 06:15", "09 06:45"]),
            # repeated: a fixed time fires the first time only
            ("30 1 * * *", "America/New_York", "2026-10-31 12:00", ["01 05:30", "02 06:30"]),
            ("30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", ["25 00:30", "26 01:30"]),
            ("45 1 * * *", "Australia/Lord_Howe", "2026-04-03 20:00", ["04 14:45", "05 15:15"]),
            # seen from within the second pass, the first is over
            ("30 1 * * *", "America/New_York", "2026-11-01 06:10", ["02 06:30"]),
            # each half hour is each half hour, whatever it is called
            ("*/30 * * * *", "America/New_York", "2026-11-01 04:45", ["01 05:00", "01 05:30", "01 06:00", "01 06:30"]),
            ("*/30 * * * *", "America/New_York", "2026-03-08 06:15", ["08 06:30", "08 07:00", "08 07:30"]),
            ("*/15 * * * *", "Australia/Lord_Howe", "2026-04-04 14:35", ["04 14:45", "04 15:00", "04 15:15"]),
            # the clocks of Shanghai stand still
            ("0 2 * * *", "Asia/Shanghai", "2026-03-07 20:00", ["08 18:00", "09 18:00"]),
        ],
    )  # fmt: skip
    def test_each_comes_once_where_clocks_change(
        self, expression: str, zone: str, start: str, times: list[str]
    ) -> None:
        moment: datetime | None = datetime.fromisoformat(start).replace(tzinfo=UTC)
        found = []
        for _ in times:
            moment = cron.after(expression, zone, moment) if moment else None
            found.append(f"{moment:%d %H:%M}")

        assert found == times

    @pytest.mark.parametrize(
        ("expression", "zone", "codes"),
        [
            ("0 0 30 2 *", "UTC", {"/cron": "bad_cron"}),
            ("0 0 31 4,6 *", "UTC", {"/cron": "bad_cron"}),
            ("0 0 */30 2 MON#5", "UTC", {"/cron": "never"}),
            ("* * * * * *", "UTC", {"/cron": "bad_cron"}),
            ("@daily", "UTC", {"/cron": "bad_cron"}),
            ("", "UTC", {"/cron": "bad_cron"}),
            ("61 * * * *", "UTC", {"/cron": "bad_cron"}),
            ("0 2 * * *", "Mars/Olympus", {"/time_zone": "unknown_zone"}),
            ("0 2 * * *", "../etc/passwd", {"/time_zone": "unknown_zone"}),
            ("x", "", {"/cron": "bad_cron", "/time_zone": "unknown_zone"}),
            ("0 0 29 2 *", "Asia/Kolkata", {}),
            ("0 9 * * MON#1", "Asia/Shanghai", {}),
        ],
    )
    def test_what_can_never_be_is_refused(self, expression: str, zone: str, codes: dict[str, str]) -> None:
        assert {fault.pointer: fault.code for fault in cron.faults(expression, zone)} == codes

    @pytest.mark.parametrize(
        "zone",
        ["UTC+8", "GMT+8", "utc+08:00", "GMT+0800", "+08:00", "+8", "CST", "Asia/Beijing", "Beijing",
         "China Standard Time", "China_Standard_Time"],
    )  # fmt: skip
    def test_what_people_call_chinas_zone_is_answered_with_its_name(self, zone: str) -> None:
        (fault,) = cron.faults("0 2 * * *", zone)

        assert fault.message.endswith("did you mean Asia/Shanghai?")

    def test_another_offset_is_answered_without_a_wrong_guess(self) -> None:
        for zone in ("UTC+9", "GMT-5", "-03:30"):
            (fault,) = cron.faults("0 2 * * *", zone)
            assert fault.message.endswith("an offset is not a zone, name a place")

    def test_a_zone_whose_sign_is_inverted_is_taken_with_a_warning(self) -> None:
        assert cron.faults("0 2 * * *", "Etc/GMT+8") == []
        assert "is UTC-8" in str(cron.zone_warning("Etc/GMT+8"))
        assert "is UTC+8" in str(cron.zone_warning("Etc/GMT-8"))
        assert all(cron.zone_warning(zone) is None for zone in ("Asia/Shanghai", "Etc/UTC", "Etc/GMT+0", "PRC"))

    def test_a_misspelt_zone_is_answered_with_a_near_one(self) -> None:
        (fault,) = cron.faults("0 2 * * *", "europe/berln")

        assert "did you mean Europe/Berlin?" in fault.message

    def test_a_rare_time_is_found_years_ahead(self) -> None:
        assert cron.after("0 0 29 2 *", "UTC", START) == datetime(2028, 2, 29, tzinfo=UTC)


class TestTemplates:
    def test_variables_are_told_from_the_fire_time_in_the_schedules_zone(self) -> None:
        fire_at = datetime(2027, 1, 2, 23, 30, tzinfo=UTC)  # Sunday the 3rd in Berlin, of 2026's last ISO week
        last = datetime(2027, 1, 1, 23, 29, tzinfo=UTC)
        run = plans._NO_RUN

        told = plans.Occasion.of(fire_at, "Europe/Berlin", last, run).values()

        assert told == {
            "date": "2027-01-03",
            "yesterday": "2027-01-02",
            "time": "00:30",
            "week": "2026-W53",
            "month": "2027-01",
            "fire_at": "2027-01-03T00:30:00+01:00",
            "since": "2027-01-02T00:29:00+01:00",
            "until": "2027-01-03T00:29:00+01:00",
            "run": str(run),
        }
        assert set(told) == set(plans.VARIABLES)

    def test_every_string_is_filled_and_braces_can_be_written(self) -> None:
        template = {"a": ["{{date}}", {"{{month}}": "x {{ date }} y"}, 5, None], "b": "{{{{date}} {one} }}", "c": True}

        assert plans.fill(template, {"date": "D", "month": "M"}) == (
            {"a": ["D", {"M": "x D y"}, 5, None], "b": "{{date}} {one} }}", "c": True},
            [],
        )

    def test_what_is_no_variable_is_named_by_where_it_stands(self) -> None:
        _, found = plans.fill({"a/b": ["{{dat}}", "{{date"], "c": "{{ }}"}, {"date": "D"})

        assert [(fault.pointer, fault.code) for fault in found] == [
            ("/a~1b/0", "unknown_variable"),
            ("/a~1b/1", "bad_variable"),
            ("/c", "unknown_variable"),
        ]

    def test_what_a_variable_holds_is_not_filled_again(self) -> None:
        assert plans.fill("{{a}}", {"a": "{{b}}", "b": "x"}) == ("{{b}}", [])

    @pytest.mark.parametrize("hostile", ["{{" + " " * 2000, "{{ a" * 2000, "{{" * 2001, "{{a}}" * 20_000])
    def test_a_hostile_template_takes_no_longer_than_any_other(self, hostile: str) -> None:
        """It takes a tenth of a millisecond for 1,000 characters; with the cube of the blanks it took 2 s."""
        began = time.thread_time()
        _, found = plans.fill({"prompt": hostile}, {"date": "D"})

        assert time.thread_time() - began < 0.5
        assert 1 <= len(found) <= MOST_FAULTS


class TestFiring:
    def test_a_schedule_fires_at_its_time_and_not_before(self, clock: Clockwork) -> None:
        schedule = clock.make()

        assert clock.fire(START + 59 * MINUTE) == []
        assert len(clock.fire(START + HOUR)) == 1
        assert clock.fire(START + HOUR) == []

        assert clock.runs(schedule) == [("20 01:00", "clock", "submitted")]
        assert clock.look(schedule).next_at == START + 2 * HOUR
        (run,) = clock.sql("select * from runs")
        (job,) = clock.sql("select * from jobs")
        assert (run["job_id"], job["created_at"]) == (job["id"], START + HOUR)
        assert clock.sql("select entry from ledger") == [{"entry": "reserve"}]

    def test_windows_are_adjacent_and_only_a_submitted_run_moves_on(self, clock: Clockwork) -> None:
        clock.make()

        first = clock.fire(START + HOUR)
        skipped = clock.fire(START + 2 * HOUR)
        clock.end_jobs()
        third = clock.fire(START + 3 * HOUR)

        assert first == ["2026-11-19T00:59:00+00:00 to 2026-11-20T00:59:00+00:00"]
        assert skipped == []
        assert third == ["2026-11-20T00:59:00+00:00 to 2026-11-20T02:59:00+00:00"]

    def test_the_tick_says_that_schedules_are_due_until_they_are_not(self, clock: Clockwork) -> None:
        clock.make()

        def said(now: datetime) -> list[str]:
            with clock.engine.begin() as connection:
                return [message.task for message in tick.run(connection, now)]

        assert said(START + 59 * MINUTE) == []
        assert said(START + HOUR) == ["noria.fire"]
        assert said(START + HOUR) == ["noria.fire"]
        clock.fire(START + HOUR)
        assert said(START + HOUR - MINUTE) == []

    def test_many_that_hear_it_at_once_fire_it_once(self, clock: Clockwork) -> None:
        made = [clock.make(replace(HOURLY, name=f"hourly-{n}")) for n in range(12)]
        barrier, failures = threading.Barrier(4), []

        def hear() -> None:
            barrier.wait()
            try:
                clock.fire(START + HOUR)
            except Exception as error:  # noqa: BLE001 - whatever it is
                failures.append(error)

        threads = [threading.Thread(target=hear) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert failures == []
        assert {tuple(clock.runs(schedule)) for schedule in made} == {(("20 01:00", "clock", "submitted"),)}
        assert clock.sql("select count(*) from jobs") == [{"count": 12}]

    def test_a_schedule_that_somebody_holds_is_left_to_them(self, clock: Clockwork) -> None:
        held, free = clock.make(), clock.make(replace(HOURLY, name="free"))

        with clock.engine.begin() as connection:
            plans.locked(connection, clock.project.id, held.id)
            assert len(clock.fire(START + HOUR)) == 1

        assert clock.runs(free) == [("20 01:00", "clock", "submitted")]
        assert len(clock.fire(START + HOUR + MINUTE)) == 1

    def test_a_clock_that_jumps_back_fires_nothing_twice(self, clock: Clockwork) -> None:
        schedule = clock.make()
        clock.fire(START + HOUR)
        clock.end_jobs()

        for now in (START, START + 30 * MINUTE, START + HOUR, START + HOUR + MINUTE):
            assert clock.fire(now) == []
        assert len(clock.fire(START + 2 * HOUR)) == 1

        assert [run[0] for run in clock.runs(schedule)] == ["20 01:00", "20 02:00"]

    def test_a_fire_time_that_has_a_run_is_not_run_again(self, clock: Clockwork) -> None:
        schedule = clock.make()
        clock.fire(START + HOUR)
        clock.end_jobs()
        clock.sql("update schedules set next_at = :at", at=START + HOUR)  # as if the move forward were lost

        assert clock.fire(START + HOUR) == []
        assert len(clock.runs(schedule)) == 1
        assert clock.look(schedule).next_at == START + 2 * HOUR

    def test_more_than_one_word_can_fire_wait_for_the_next(self, clock: Clockwork) -> None:
        clock.settings = clock.settings.model_copy(update={"max_waiting": 1000})
        for n in range(60):
            clock.make(replace(HOURLY, name=f"hourly-{n}"))

        assert [len(clock.fire(START + HOUR)) for _ in range(3)] == [50, 10, 0]


class TestMissed:
    def test_the_latest_missed_run_is_made_up_for_once(self, clock: Clockwork) -> None:
        schedule = clock.make()

        (prompt,) = clock.fire(START + 4 * HOUR + 30 * MINUTE)

        assert clock.runs(schedule) == [
            ("20 01:00", "clock", "skipped"),
            ("20 02:00", "clock", "skipped"),
            ("20 03:00", "clock", "skipped"),
            ("20 04:00", "late", "submitted"),
        ]
        assert prompt.endswith("2026-11-20T03:59:00+00:00")
        assert clock.look(schedule).next_at == START + 5 * HOUR

    def test_or_none_is_where_that_is_wanted(self, clock: Clockwork) -> None:
        schedule = clock.make(replace(HOURLY, missed="skip"))

        assert clock.fire(START + 2 * HOUR + 30 * MINUTE) == []
        assert [run[1:] for run in clock.runs(schedule)] == [("clock", "skipped")] * 2
        assert len(clock.fire(START + 3 * HOUR)) == 1

    def test_a_run_that_is_on_time_stands_for_those_that_were_missed(self, clock: Clockwork) -> None:
        schedule = clock.make()

        assert len(clock.fire(START + 3 * HOUR + MINUTE)) == 1
        assert clock.runs(schedule) == [
            ("20 01:00", "clock", "skipped"),
            ("20 02:00", "clock", "skipped"),
            ("20 03:00", "clock", "submitted"),
        ]

    def test_a_few_minutes_are_not_late(self, clock: Clockwork) -> None:
        schedule = clock.make(replace(HOURLY, missed="skip"))

        clock.fire(START + HOUR + 5 * MINUTE)

        assert clock.runs(schedule) == [("20 01:00", "clock", "submitted")]

    def test_a_long_row_of_them_is_put_on_record_piece_by_piece(self, clock: Clockwork) -> None:
        schedule = clock.make(replace(HOURLY, cron="* * * * *"))
        now = START + DAY

        pieces = [len(clock.fire(now)) for _ in range(4)]

        counted = Counter(outcome for _, _, outcome in clock.runs(schedule))
        assert pieces == [0, 0, 1, 0]
        assert sum(counted.values()) == 24 * 60
        assert counted["submitted"] == 1
        assert clock.look(schedule).next_at == now + MINUTE


class TestOverlap:
    def test_skip_leaves_the_fire_time_out_and_says_why(self, clock: Clockwork) -> None:
        schedule = clock.make()
        clock.fire(START + HOUR)

        assert clock.fire(START + 2 * HOUR) == []

        (job,) = clock.sql("select id from jobs")
        assert clock.runs(schedule)[1] == ("20 02:00", "clock", "skipped")
        assert clock.why(schedule) == f"job {job['id']} of the run before is queued"

    @pytest.mark.parametrize("overlap", ["skip", "queue", "cancel"])
    def test_a_review_does_not_keep_the_next_one_waiting(self, clock: Clockwork, overlap: str) -> None:
        schedule = clock.make(replace(HOURLY, overlap=overlap))
        clock.fire(START + HOUR)
        clock.sql("update jobs set state = 'awaiting_review', review = 'required', run_at = null")

        made = clock.fire(START + 2 * HOUR)

        assert len(made) == 1
        assert [outcome for *_, outcome in clock.runs(schedule)] == ["submitted", "submitted"]
        assert clock.sql("select cancel_requested from jobs where review is not null") == [{"cancel_requested": False}]

    def test_a_queued_run_does_not_wait_for_a_review(self, clock: Clockwork) -> None:
        clock.make(replace(HOURLY, overlap="queue"))
        clock.fire(START + HOUR)
        assert clock.fire(START + 2 * HOUR) == []

        clock.sql("update jobs set state = 'awaiting_review', review = 'required', run_at = null")

        with clock.engine.connect() as connection:
            assert connection.execute(select(firing.is_due(START + 2 * HOUR + MINUTE))).scalar_one()
        assert len(clock.fire(START + 2 * HOUR + MINUTE)) == 1

    def test_queued_runs_follow_one_another_each_with_its_window(self, clock: Clockwork) -> None:
        schedule = clock.make(replace(HOURLY, overlap="queue"))
        clock.fire(START + HOUR)
        clock.fire(START + 2 * HOUR)
        clock.fire(START + 3 * HOUR)
        assert [run[2] for run in clock.runs(schedule)] == ["submitted", "waiting", "waiting"]

        now = START + 3 * HOUR + MINUTE
        assert clock.fire(now) == []
        clock.end_jobs()
        second = clock.fire(now)
        assert clock.fire(now) == []
        clock.end_jobs()
        third = clock.fire(now)

        assert second == ["2026-11-20T00:59:00+00:00 to 2026-11-20T01:59:00+00:00"]
        assert third == ["2026-11-20T01:59:00+00:00 to 2026-11-20T02:59:00+00:00"]
        assert [run[2] for run in clock.runs(schedule)] == ["submitted"] * 3

    def test_the_line_of_waiting_runs_has_an_end(self, clock: Clockwork) -> None:
        schedule = clock.make(replace(HOURLY, overlap="queue"))

        for hour in range(1, 14):
            clock.fire(START + hour * HOUR)

        assert Counter(run[2] for run in clock.runs(schedule)) == {"submitted": 1, "waiting": 10, "skipped": 2}
        assert clock.why(schedule).endswith("is queued, and 10 wait already")

    def test_cancel_submits_and_asks_the_one_before_to_stop(self, clock: Clockwork) -> None:
        schedule = clock.make(replace(HOURLY, overlap="cancel"))
        clock.fire(START + HOUR)

        assert len(clock.fire(START + 2 * HOUR)) == 1

        states = clock.sql("select state from jobs order by created_at")
        assert [row["state"] for row in states] == ["canceled", "queued"]
        assert clock.why(schedule).endswith("was asked to stop: canceled")

    def test_a_job_that_cannot_be_canceled_runs_beside_the_next(self, clock: Clockwork) -> None:
        schedule = clock.make(replace(HOURLY, overlap="cancel"))
        clock.fire(START + HOUR)
        clock.sql("update jobs set state = 'held', held_for = 'uncertain', held_from = 'uncertain', run_at = null")

        assert len(clock.fire(START + 2 * HOUR)) == 1
        assert "a person has to say first" in clock.why(schedule)

    def test_nothing_is_canceled_for_a_run_that_is_refused(self, clock: Clockwork) -> None:
        schedule = clock.make(replace(HOURLY, overlap="cancel"))
        clock.fire(START + HOUR)
        clock.sql("update schedules set template = jsonb_set(template, '{model}', '\"wan0\"')")

        clock.fire(START + 2 * HOUR)

        assert clock.runs(schedule)[1] == ("20 02:00", "clock", "refused")
        assert clock.sql("select state from jobs") == [{"state": "queued"}]


class TestRefusals:
    def test_a_refusal_is_on_record_and_the_schedule_goes_on(self, clock: Clockwork) -> None:
        schedule = clock.make()
        clock.sql("update schedules set template = jsonb_set(template, '{model}', '\"wan0\"')")

        assert clock.fire(START + HOUR) == []

        assert clock.runs(schedule) == [("20 01:00", "clock", "refused")]
        assert clock.why(schedule).startswith("/model: ")
        assert clock.look(schedule).since is None
        clock.change(schedule, START + HOUR, template=TEMPLATE)
        assert len(clock.fire(START + 2 * HOUR)) == 1

    def test_a_project_that_is_full_is_refused(self, clock: Clockwork) -> None:
        clock.settings = clock.settings.model_copy(update={"max_waiting": 1})
        first, second = clock.make(), clock.make(replace(HOURLY, name="second"))

        clock.fire(START + HOUR)

        assert sorted(run[2] for made in (first, second) for run in clock.runs(made)) == ["refused", "submitted"]
        assert clock.sql("select why from runs where outcome = 'refused'") == [
            {"why": "the project has 1 unfinished jobs, as many as it may"}
        ]

    @pytest.mark.parametrize(
        ("spoilt", "why"),
        [
            ("update schedules set template = '{\"nonsense\": 1}' where id = :id", "a fault of Noria's own"),
            ("update schedules set time_zone = 'Mars/Olympus' where id = :id", "is not a zone of the tz database"),
            ('update schedules set template = \'{"kind": "{{then}}"}\' where id = :id', "has {{then}}"),
        ],
    )
    def test_a_schedule_that_nobody_can_read_stops_no_other(self, clock: Clockwork, spoilt: str, why: str) -> None:
        bad = clock.make()
        good = clock.make(replace(HOURLY, name="good"))
        clock.sql(spoilt, id=bad.id)

        assert len(clock.fire(START + HOUR)) == 1

        assert clock.runs(good) == [("20 01:00", "clock", "submitted")]
        assert clock.runs(bad) == [("20 01:00", "clock", "refused")]
        assert why in clock.why(bad)

    def test_one_that_stumbles_stops_no_other_and_is_tried_again(self, clock: Clockwork) -> None:
        bad, good = clock.make(), clock.make(replace(HOURLY, name="good"))
        clock.sql(
            "create function spoil() returns trigger language plpgsql as $$ begin raise 'no'; end $$;"
            f"create trigger spoil before insert on runs for each row when (new.schedule_id = '{bad.id}')"
            " execute function spoil()"
        )

        with capture_logs() as logged:
            assert len(clock.fire(START + HOUR)) == 1
        assert [line["schedule"] for line in logged if line["log_level"] == "error"] == [str(bad.id)]
        assert (clock.runs(bad), len(clock.runs(good))) == ([], 1)
        clock.sql("drop trigger spoil on runs")

        assert len(clock.fire(START + HOUR + MINUTE)) == 1
        assert clock.runs(bad) == [("20 01:00", "clock", "submitted")]


class TestChanging:
    def test_an_edit_while_due_leaves_no_fire_time_without_a_word(self, clock: Clockwork) -> None:
        schedule = clock.make()

        changed = clock.change(schedule, START + HOUR + MINUTE, cron="30 * * * *")

        assert clock.runs(schedule) == [("20 01:00", "clock", "skipped")]
        assert clock.why(schedule) == "the schedule was changed before it could fire"
        assert changed.next_at == START + HOUR + 30 * MINUTE

    def test_another_template_is_what_the_due_fire_time_submits(self, clock: Clockwork) -> None:
        schedule = clock.make()
        template = TEMPLATE | {"input": {"prompt": "new on {{date}}"}}

        clock.change(schedule, START + HOUR + MINUTE, template=template)

        assert clock.fire(START + HOUR + MINUTE) == ["new on 2026-11-20"]

    def test_another_zone_moves_the_next_fire_time(self, clock: Clockwork) -> None:
        schedule = clock.make(replace(HOURLY, cron="0 2 * * *"))
        assert schedule.next_at == START + 2 * HOUR

        assert clock.change(schedule, START, time_zone="Asia/Shanghai").next_at == START + 18 * HOUR

    def test_nothing_is_made_up_for_after_a_pause(self, clock: Clockwork) -> None:
        schedule = clock.make()
        clock.pause(schedule, START + 30 * MINUTE)

        assert clock.fire(START + 3 * HOUR) == []
        resumed = clock.resume(schedule, START + 3 * HOUR + MINUTE)

        assert resumed.next_at == START + 4 * HOUR
        assert clock.fire(START + 3 * HOUR + MINUTE) == []
        assert clock.runs(schedule) == []

    def test_a_pause_drops_what_is_due_and_what_waits(self, clock: Clockwork) -> None:
        schedule = clock.make(replace(HOURLY, overlap="queue"))
        clock.fire(START + HOUR)
        clock.fire(START + 2 * HOUR)

        clock.pause(schedule, START + 3 * HOUR)
        clock.end_jobs()

        assert [run[2] for run in clock.runs(schedule)] == ["submitted", "skipped", "skipped"]
        assert clock.fire(START + 3 * HOUR) == []

    def test_a_paused_schedule_stays_paused_when_it_is_changed(self, clock: Clockwork) -> None:
        schedule = clock.make()
        clock.pause(schedule, START)

        assert clock.change(schedule, START, cron="5 * * * *").next_at is None

    def test_a_deleted_schedule_takes_its_history_along_and_leaves_its_jobs(self, clock: Clockwork) -> None:
        schedule = clock.make()
        clock.fire(START + HOUR)

        with clock.engine.begin() as connection:
            plans.remove(connection, plans.locked(connection, clock.project.id, schedule.id))

        assert clock.runs(schedule) == []
        assert clock.sql("select state from jobs") == [{"state": "queued"}]
        with pytest.raises(NotFound):
            clock.look(schedule)
        assert clock.fire(START + 2 * HOUR) == []

    def test_names_are_a_projects_own_and_the_same_words_make_one_schedule(self, clock: Clockwork) -> None:
        first, again = clock.make(), clock.make()
        other = clock.make(replace(HOURLY, name="other"))

        assert first.id == again.id
        with pytest.raises(Conflict, match="another schedule named hourly"):
            clock.make(replace(HOURLY, cron="5 * * * *"))
        with pytest.raises(Conflict, match="another schedule named hourly"):
            clock.change(other, START, name="hourly")

    def test_a_project_has_so_many_schedules_however_many_are_made_at_once(self, clock: Clockwork) -> None:
        refused: list[str] = []

        def make(n: int) -> None:
            try:
                with clock.engine.begin() as connection:
                    plans.make(connection, clock.project, replace(HOURLY, name=f"s{n}"), 3, START)
            except Conflict as error:
                refused.append(error.code)

        threads = [threading.Thread(target=make, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert refused == ["too_many_schedules"] * 3
        assert clock.sql("select count(*) from schedules") == [{"count": 3}]


class TestRunningNow:
    def test_a_persons_run_takes_the_window_so_far(self, clock: Clockwork) -> None:
        schedule = clock.make()
        clock.fire(START + HOUR)
        clock.end_jobs()

        made = clock.run_now(schedule, START + HOUR + 30 * MINUTE + timedelta(seconds=5.7))
        clock.end_jobs()
        (after,) = clock.fire(START + 2 * HOUR)

        assert made.job is not None
        assert made.job.input["prompt"] == "2026-11-20T00:59:00+00:00 to 2026-11-20T01:29:05+00:00"
        assert after == "2026-11-20T01:29:05+00:00 to 2026-11-20T01:59:00+00:00"
        assert clock.runs(schedule)[1] == ("20 01:30", "person", "submitted")
        assert clock.look(schedule).next_at == START + 3 * HOUR

    def test_it_minds_the_run_before_and_a_pause_does_not_stop_it(self, clock: Clockwork) -> None:
        schedule = clock.make()
        clock.pause(schedule, START)

        first = clock.run_now(schedule, START + MINUTE)
        second = clock.run_now(schedule, START + 2 * MINUTE)

        assert (first.job is None, second.job is None) == (False, True)
        assert [run[1:] for run in clock.runs(schedule)] == [("person", "submitted"), ("person", "skipped")]

    def test_two_runs_within_a_minute_share_no_moment(self, clock: Clockwork) -> None:
        schedule = clock.make()
        clock.fire(START + HOUR)
        clock.end_jobs()

        made = clock.run_now(schedule, START + HOUR + timedelta(seconds=20))
        clock.sql("update schedules set since = since + interval '50 seconds'")
        clock.end_jobs()
        again = clock.run_now(schedule, START + HOUR + timedelta(seconds=40))

        assert made.job is not None
        assert made.job.input["prompt"] == "2026-11-20T00:59:00+00:00 to 2026-11-20T00:59:20+00:00"
        assert again.job is not None
        assert again.job.input["prompt"] == "2026-11-20T01:00:10+00:00 to 2026-11-20T01:00:10+00:00"

    def test_under_one_key_there_is_one_run(self, clock: Clockwork) -> None:
        schedule = clock.make()

        first = clock.run_now(schedule, START + MINUTE, "k1")
        again = clock.run_now(schedule, START + 2 * MINUTE, "k1")

        assert (again.run, again.replayed) == (first.run, True)
        with pytest.raises(Conflict, match="this second"):
            clock.run_now(schedule, START + MINUTE, "k2")


# a moment of the next two days, to the second, and whether all jobs end before it
MOMENTS = st.tuples(st.integers(0, 2 * 86_400), st.booleans())


@settings(
    max_examples=40,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    zone=st.sampled_from(["America/New_York", "Europe/Berlin", "Australia/Lord_Howe"]),
    day=st.sampled_from([date(2026, 3, 7), date(2026, 3, 28), date(2026, 4, 4), date(2026, 10, 31)]),
    overlap=st.sampled_from(["skip", "queue", "cancel"]),
    missed=st.sampled_from(["run_once", "skip"]),
    moments=st.lists(MOMENTS, min_size=1, max_size=7),
    at_once=st.integers(1, 3),
)
def test_whatever_clocks_do_each_fire_time_has_one_run_and_at_most_one_job(
    clock: Clockwork, zone: str, day: date, overlap: str, missed: str, moments: list[tuple[int, bool]], at_once: int
) -> None:
    clock.sql("delete from schedules")
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    schedule = clock.make(Plan("any", "*/20 * * * *", zone, TEMPLATE, overlap, missed), start)

    for seconds, jobs_end in moments:  # in any order: a clock may jump
        if jobs_end:
            clock.end_jobs()
        _at_once(at_once, clock, start + timedelta(seconds=seconds))

    last = start + timedelta(seconds=max(seconds for seconds, _ in moments))
    runs = clock.sql("select * from runs where schedule_id = :id order by fire_at", id=schedule.id)
    jobs = [run["job_id"] for run in runs if run["job_id"]]
    assert [run["fire_at"] for run in runs] == _every_20_minutes(zone, start, last)
    assert len(jobs) == len(set(jobs))
    assert {run["id"] for run in runs if run["job_id"]} == {run["id"] for run in runs if run["outcome"] == "submitted"}
    _adjacent(clock, jobs)


def _at_once(count: int, clock: Clockwork, now: datetime) -> None:
    threads = [threading.Thread(target=clock.fire, args=(now,)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _every_20_minutes(zone: str, start: datetime, last: datetime) -> list[datetime]:
    """Worked out the slow way: each minute, by what the clock on the wall shows."""
    minutes = (start + n * MINUTE for n in range(1, 2 * 24 * 60 + 1))
    return [at for at in minutes if at <= last and at.astimezone(ZoneInfo(zone)).minute % 20 == 0]


def _adjacent(clock: Clockwork, jobs: list[Any]) -> None:
    """Each window begins where the last ended: every document falls into exactly one."""
    rows = clock.sql("select id, input from jobs where id = any(:jobs)", jobs=jobs)
    prompts = {row["id"]: row["input"]["prompt"].split(" to ") for row in rows}
    windows = [[datetime.fromisoformat(moment) for moment in prompts[job]] for job in jobs]
    assert all(before[1] == after[0] < after[1] for before, after in pairwise(windows))
