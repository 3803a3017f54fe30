"""Schedules, jobs that the clock submits: what one says, how it is made, changed, paused and read.

`next_at` is the next fire time, and each is worked out from the one before it, never from the clock: so none comes
twice, however clocks jump. Whoever changes a schedule locks its row. Fire times that came due and were not fired before
a change or a pause are recorded as skipped. Every query of a user's carries the project, so another project's ids do
not exist.

In a template's strings `{{date}}` and other variables stand for what a run is about. They are told from the fire time,
in the schedule's zone, never from the clock: a late run says what it would have said in time. `{{{{` stands for two
braces; a single brace is a brace.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field
from sqlalchemy import Connection, Select, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import catalog, kinds, text
from worker.document import Answer, Moment
from worker.errors import MOST_FAULTS, Conflict, Fault, InvalidInput, NotFound
from worker.schedules import clock
from worker.tables import Job, Project, Run, Schedule

AT_ONCE = 500  # fire times that are recorded in one statement
VARIABLES = {
    "date": "the day of the fire time: 2026-03-01",
    "yesterday": "the day before it: 2026-02-28",
    "time": "its time of day: 02:30",
    "week": "its ISO week: 2026-W09",
    "month": "its month: 2026-03",
    "fire_at": "the fire time: 2026-03-01T02:30:00+08:00",
    "since": "the `until` of the last run that submitted a job; a day before this `until` at first",
    "until": "a minute before the fire time, so that what is being written then falls into the next run",
    "run": "the run's id",
}
_EDGE = timedelta(minutes=1)
_FIRST = timedelta(days=1)
# Possessive (`*+`): else a row of blanks is tried in quadratically many ways.
_SPOKEN = re.compile(r"(?P<braces>\{\{\{\{)|\{\{(?P<name>[^{}]*+)\}\}|(?P<open>\{\{)")
_NO_RUN = uuid.UUID(int=0)
_SKIPPED = upsert(Run).on_conflict_do_nothing()
_SHOWN = 5  # of the next fire times


class Overlap(StrEnum):
    """What happens at a fire time while the job of the run before has not ended."""

    SKIP = "skip"
    QUEUE = "queue"
    CANCEL = "cancel"  # asks that job to stop


class Missed(StrEnum):
    """What becomes of fire times at which no clock ran."""

    RUN_ONCE = "run_once"  # the latest is run late, unless the next has come meanwhile
    SKIP = "skip"


class Trigger(StrEnum):
    """Why there is a run."""

    CLOCK = "clock"
    LATE = "late"  # missed, and run late
    PERSON = "person"


class Outcome(StrEnum):
    """What became of a run."""

    WAITING = "waiting"  # for the job of the run before
    SUBMITTED = "submitted"
    SKIPPED = "skipped"
    REFUSED = "refused"


@dataclass(frozen=True)
class Plan:
    """The fields of a schedule that a user sets; `template` is a submission with variables in its strings."""

    name: str
    cron: str
    time_zone: str
    template: dict[str, Any]
    overlap: str = Overlap.SKIP
    missed: str = Missed.RUN_ONCE

    @classmethod
    def of(cls, schedule: Schedule) -> Self:
        """The plan of that schedule."""
        return cls(**{field.name: getattr(schedule, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class Occasion:
    """What one run is about. Windows are half-open, and each begins where the last ended: `since` until `until`."""

    fire_at: datetime
    time_zone: str
    since: datetime
    until: datetime
    run: uuid.UUID

    @classmethod
    def of(cls, fire_at: datetime, time_zone: str, last_until: datetime | None, run: uuid.UUID) -> Self:
        """The occasion of a fire time, after the window that ended at `last_until` (None: it is the first)."""
        until = fire_at - _EDGE
        if last_until is None:
            return cls(fire_at, time_zone, until - _FIRST, until, run)
        return cls(fire_at, time_zone, last_until, max(until, last_until), run)

    def values(self) -> dict[str, str]:
        """Each variable's value."""
        zone = ZoneInfo(self.time_zone)
        local = self.fire_at.astimezone(zone)
        year, week, _ = local.isocalendar()
        return {
            "date": local.date().isoformat(),
            "yesterday": (local.date() - timedelta(days=1)).isoformat(),
            "time": f"{local:%H:%M}",
            "week": f"{year}-W{week:02}",
            "month": f"{local:%Y-%m}",
            "fire_at": local.isoformat(timespec="seconds"),
            "since": self.since.astimezone(zone).isoformat(timespec="seconds"),
            "until": self.until.astimezone(zone).isoformat(timespec="seconds"),
            "run": str(self.run),
        }


class ScheduleDocument(Answer):
    """A job for the clock to submit."""

    id: uuid.UUID
    object: Literal["schedule"] = "schedule"
    name: str
    cron: str
    time_zone: str
    explained: str = Field(description="the cron expression, in English", examples=["At 02:30 every day"])
    template: dict[str, Any] = Field(description="what it submits, with its variables as they were written")
    overlap: Overlap
    missed: Missed
    next: list[Moment] = Field(description="the next five fire times; none while it is paused")
    paused_at: Moment | None
    since: Moment | None = Field(description="until when its last submitted run took documents")
    job_id: uuid.UUID | None = Field(description="of its last run that submitted one")
    created_at: Moment
    updated_at: Moment
    warnings: list[Fault] = Field(description="a zone with its sign inverted, a model that others report as retired")
    urls: dict[str, str]

    @classmethod
    def of(cls, schedule: Schedule) -> Self:
        """The document of a schedule's row."""
        path = f"/v1/schedules/{schedule.id}"
        return cls(
            id=schedule.id,
            **asdict(Plan.of(schedule)),
            explained=clock.explain(schedule.cron),
            next=_upcoming(schedule),
            paused_at=schedule.paused_at,
            since=schedule.since,
            job_id=schedule.job_id,
            created_at=schedule.created_at,
            updated_at=schedule.updated_at,
            warnings=_warnings(schedule),
            urls={"self": path, "runs": f"{path}/runs"},
        )


class RunDocument(Answer):
    """What became of one fire time, or of a run that a person asked for."""

    id: uuid.UUID
    object: Literal["run"] = "run"
    schedule_id: uuid.UUID
    fire_at: Moment
    trigger: Trigger = Field(description="late: no clock ran at its time")
    outcome: Outcome
    why: str
    job_id: uuid.UUID | None
    job_state: str | None = Field(description="where its job is now")
    at: Moment = Field(description="when it was handled")


def one(connection: Connection, project_id: uuid.UUID, schedule_id: uuid.UUID) -> Schedule:
    """The project's schedule; raises NotFound."""
    return _found(connection, _one(project_id, schedule_id), schedule_id)


def locked(connection: Connection, project_id: uuid.UUID, schedule_id: uuid.UUID) -> Schedule:
    """The project's schedule, locked: nobody else fires or changes it in this transaction; raises NotFound."""
    return _found(connection, _one(project_id, schedule_id).with_for_update(), schedule_id)


def page(
    connection: Connection, project_id: uuid.UUID, name: str | None, before: uuid.UUID | None, limit: int
) -> list[Schedule]:
    """At most `limit` schedules of the project, the newest first, after the one with the id `before`.

    What is long in a template is cut, as in a list of jobs.
    """
    statement = select(*_LISTED).where(Schedule.project_id == project_id)
    if name is not None:
        statement = statement.where(Schedule.name == name)
    if before is not None:
        statement = statement.where(Schedule.id < before)
    rows = connection.execute(statement.order_by(Schedule.id.desc()).limit(limit))
    return [Schedule.of(row) for row in rows.mappings()]


def runs(connection: Connection, schedule: Schedule, before: datetime | None, limit: int) -> Sequence[Any]:
    """At most `limit` runs, the latest fire time first, of those before that one; each with its `job_state`."""
    statement = _RUNS.where(Run.schedule_id == schedule.id)
    if before is not None:
        statement = statement.where(Run.fire_at < before)
    return connection.execute(statement.order_by(Run.fire_at.desc()).limit(limit)).all()


def run(connection: Connection, run_id: uuid.UUID) -> Any:
    """That run, as `runs` gives it."""
    return connection.execute(_RUNS.where(Run.id == run_id)).one()


def due_times(schedule: Schedule, now: datetime, most: int) -> list[datetime]:
    """The fire times that have come, from `next_at` on, the first `most` of them."""
    times: list[datetime] = []
    fires = schedule.next_at
    while fires is not None and fires <= now and len(times) < most:
        times.append(fires)
        fires = following(schedule, fires)
    return times


def following(schedule: Schedule, at: datetime) -> datetime | None:
    """The fire time after an instant; None when there is none, or this machine cannot read the zone any more."""
    try:
        return clock.after(schedule.cron, schedule.time_zone, at)
    except InvalidInput:
        return None


def rehearse(template: Any, fire_at: datetime, time_zone: str) -> tuple[Any, list[Fault]]:
    """The template as that fire time would fill it, and the faults of its variables."""
    return fill(template, Occasion.of(fire_at, time_zone, None, _NO_RUN).values())


def fill(template: Any, values: Mapping[str, str]) -> tuple[Any, list[Fault]]:
    """The template with its variables replaced, and the faults of those that are none."""
    found: list[Fault] = []
    return _filled(template, values, "", found), found


def make(connection: Connection, project: Project, plan: Plan, most: int, now: datetime) -> tuple[Schedule, bool]:
    """The schedule, and whether it was there before, with the same fields: so making one may be repeated.

    Raises Conflict when the name is another schedule's, or the project has `most` of them.
    """
    # locked, so that the count holds until the commit; submissions of jobs do not wait for it
    connection.execute(select(Project.id).where(Project.id == project.id).with_for_update(key_share=True))
    first = _named(connection, project.id, plan.name)
    if first is not None and Plan.of(first) == plan:
        return first, True
    if first is not None:
        raise _taken(plan.name)
    count = connection.execute(select(func.count()).where(Schedule.project_id == project.id)).scalar_one()
    if count >= most:
        raise Conflict("too_many_schedules", f"the project has {count} schedules, as many as it may")
    columns = {**asdict(plan), "project_id": project.id, "created_at": now, "updated_at": now}
    made = insert(Schedule).values(**columns, next_at=clock.after(plan.cron, plan.time_zone, now))
    row = connection.execute(made.returning(*Schedule.__table__.c)).mappings().one()
    return Schedule.of(row), False


def change(connection: Connection, schedule: Schedule, plan: Plan, now: datetime) -> Schedule:
    """The schedule with another plan; `schedule` is locked. Raises Conflict when the name is another's."""
    other = _named(connection, schedule.project_id, plan.name)
    if other is not None and other.id != schedule.id:
        raise _taken(plan.name)
    if plan.overlap != Overlap.QUEUE:
        _drop_waiting(connection, schedule, "the schedule lets no run wait any more")
    is_retimed = (plan.cron, plan.time_zone) != (schedule.cron, schedule.time_zone) or schedule.next_at is None
    if is_retimed and schedule.paused_at is None:
        _pass_over(connection, schedule, "the schedule was changed before it could fire", now)
        schedule.next_at = clock.after(plan.cron, plan.time_zone, now)
    return _set(connection, schedule, {**asdict(plan), "next_at": schedule.next_at, "updated_at": now})


def pause(connection: Connection, schedule: Schedule, now: datetime) -> Schedule:
    """The schedule, which fires no more; what waited for the run before is dropped. `schedule` is locked."""
    if schedule.paused_at is not None:
        return schedule
    why = "the schedule was paused before"
    _pass_over(connection, schedule, why, now)
    _drop_waiting(connection, schedule, why)
    return _set(connection, schedule, {"paused_at": now, "next_at": None})


def resume(connection: Connection, schedule: Schedule, now: datetime) -> Schedule:
    """The schedule, which fires again from its next fire time on; nothing is made up for. `schedule` is locked."""
    if schedule.paused_at is None:
        return schedule
    next_at = clock.after(schedule.cron, schedule.time_zone, now)
    return _set(connection, schedule, {"paused_at": None, "next_at": next_at})


def remove(connection: Connection, schedule: Schedule) -> None:
    """Deletes the schedule with its history; its jobs stay."""
    connection.execute(delete(Schedule).where(Schedule.id == schedule.id))


def skip(connection: Connection, schedule: Schedule, times: Sequence[datetime], why: str, now: datetime) -> None:
    """Records fire times as skipped, except those that have a run."""
    if times:
        words = {"trigger": Trigger.CLOCK, "outcome": Outcome.SKIPPED, "why": why, "at": now}
        whose = {"schedule_id": schedule.id, "project_id": schedule.project_id}
        connection.execute(_SKIPPED, [{**whose, **words, "fire_at": fires} for fires in times])


def _one(project_id: uuid.UUID, schedule_id: uuid.UUID) -> Select[Any]:
    return select(*Schedule.__table__.c).where(Schedule.project_id == project_id, Schedule.id == schedule_id)


def _found(connection: Connection, statement: Select[Any], schedule_id: uuid.UUID) -> Schedule:
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no schedule {schedule_id}")
    return Schedule.of(row)


def _upcoming(schedule: Schedule) -> list[datetime]:
    found: list[datetime] = []
    fires = schedule.next_at
    while fires is not None and len(found) < _SHOWN:
        found.append(fires)
        fires = following(schedule, fires)
    return found


def _warnings(schedule: Schedule) -> list[Fault]:
    """What is accepted but probably not meant: a zone with its sign inverted, a model that others report as retired."""
    template, zone = schedule.template, clock.zone_warning(schedule.time_zone)
    of_template = kinds.warnings(catalog.load(), template["kind"], template.get("model"), template.get("input") or {})
    found = [replace(warning, pointer=f"/template{warning.pointer}") for warning in of_template]
    return ([Fault("/time_zone", "inverted_zone", zone)] if zone else []) + found


def _named(connection: Connection, project_id: uuid.UUID, name: str) -> Schedule | None:
    named = select(*Schedule.__table__.c).where(Schedule.project_id == project_id, Schedule.name == name)
    row = connection.execute(named).mappings().one_or_none()
    return Schedule.of(row) if row else None


def _taken(name: str) -> Conflict:
    return Conflict("schedule_exists", f"the project has another schedule named {name}")


def _set(connection: Connection, schedule: Schedule, columns: dict[str, Any]) -> Schedule:
    changed = update(Schedule).where(Schedule.id == schedule.id).values(**columns).returning(*Schedule.__table__.c)
    return Schedule.of(connection.execute(changed).mappings().one())


def _pass_over(connection: Connection, schedule: Schedule, why: str, now: datetime) -> None:
    while times := due_times(schedule, now, AT_ONCE):
        skip(connection, schedule, times, why, now)
        schedule.next_at = following(schedule, times[-1])


def _drop_waiting(connection: Connection, schedule: Schedule, why: str) -> None:
    waiting = update(Run).where(Run.schedule_id == schedule.id, Run.outcome == Outcome.WAITING)
    connection.execute(waiting.values(outcome=Outcome.SKIPPED, why=why))


def _filled(value: Any, values: Mapping[str, str], where: str, found: list[Fault]) -> Any:
    if isinstance(value, str):
        return _spoken(value, values, where, found)
    if isinstance(value, list):
        return [_filled(item, values, f"{where}/{n}", found) for n, item in enumerate(value)]
    if isinstance(value, dict):
        below = {name: where + text.pointer([name]) for name in value}
        return {
            _spoken(name, values, below[name], found): _filled(item, values, below[name], found)
            for name, item in value.items()
        }
    return value


def _spoken(words: str, values: Mapping[str, str], where: str, found: list[Fault]) -> str:
    def replaced(match: re.Match[str]) -> str:
        if match["braces"]:
            return "{{"
        name = (match["name"] or "").strip()
        if name in values:
            return values[name]
        if len(found) < MOST_FAULTS:
            found.append(_fault(match, name, values, where))
        return match[0]

    return _SPOKEN.sub(replaced, words)


def _fault(match: re.Match[str], name: str, values: Mapping[str, str], where: str) -> Fault:
    if match["open"]:
        return Fault(where, "bad_variable", "has {{ that does not begin a variable; {{{{ stands for two braces")
    known = ", ".join(values)
    return Fault(where, "unknown_variable", f"has {{{{{name[:40]}}}}}, and variables are: {known}")


_SHORT = {"template": func.shortened(Schedule.template, type_=JSONB).label("template")}
_LISTED = [_SHORT.get(column.name, column) for column in Schedule.__table__.c]
_RUNS = select(*Run.__table__.c, Job.state.label("job_state")).outerjoin(Job, Job.id == Run.job_id)
