"""Schedules, jobs that the clock submits: how one is made, changed and paused. How one fires is `firing`.

`next_at` is the next fire time, and each is worked out from the one before it, never from the clock: so however clocks
jump, none comes twice. Whoever changes a schedule holds its row. What came due and was not fired before it was changed
or paused is on record as skipped.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from worker.errors import Conflict, Fault
from worker.schedules import cron, templates, timetable
from worker.schedules.templates import Occasion
from worker.tables import Project, Run, Schedule

AT_ONCE = 500  # fire times that are put on record in one go
_NO_RUN = uuid.UUID(int=0)
_SKIPPED = upsert(Run).on_conflict_do_nothing()


class Overlap(StrEnum):
    """What a fire time does while the job of the run before has not ended."""

    SKIP = "skip"
    QUEUE = "queue"
    CANCEL = "cancel"  # asks that job to stop


class Missed(StrEnum):
    """What becomes of fire times at which no clock ran."""

    RUN_ONCE = "run_once"  # the latest is made up for, unless the next has come meanwhile
    SKIP = "skip"


class Trigger(StrEnum):
    """Why there is a run."""

    CLOCK = "clock"
    LATE = "late"  # missed, and made up for
    PERSON = "person"


class Outcome(StrEnum):
    """What became of a run."""

    WAITING = "waiting"  # for the job of the run before
    SUBMITTED = "submitted"
    SKIPPED = "skipped"
    REFUSED = "refused"


@dataclass(frozen=True)
class Plan:
    """What a user says of a schedule; `template` is a submission with variables in its strings."""

    name: str
    cron: str
    time_zone: str
    template: dict[str, Any]
    overlap: str = Overlap.SKIP
    missed: str = Missed.RUN_ONCE

    @classmethod
    def of(cls, schedule: Schedule) -> Self:
        """What was said of that schedule."""
        return cls(**{field.name: getattr(schedule, field.name) for field in fields(cls)})


def rehearse(template: Any, fire_at: datetime, time_zone: str) -> tuple[Any, list[Fault]]:
    """The template as that fire time would fill it, and what in it is no variable."""
    return templates.fill(template, Occasion.of(fire_at, time_zone, None, _NO_RUN).values())


def make(connection: Connection, project: Project, plan: Plan, most: int, now: datetime) -> tuple[Schedule, bool]:
    """The schedule, and whether it was there before, in the same words: so making one may be repeated.

    Raises Conflict when the name is another schedule's, or the project has `most` of them.
    """
    # the count holds until the commit: whoever else makes a schedule waits, who submits a job does not
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
    made = insert(Schedule).values(**columns, next_at=cron.after(plan.cron, plan.time_zone, now))
    row = connection.execute(made.returning(*Schedule.__table__.c)).mappings().one()
    return Schedule.of(row), False


def change(connection: Connection, schedule: Schedule, plan: Plan, now: datetime) -> Schedule:
    """The schedule with another plan; `schedule` is held. Raises Conflict when the name is another's."""
    other = _named(connection, schedule.project_id, plan.name)
    if other is not None and other.id != schedule.id:
        raise _taken(plan.name)
    if plan.overlap != Overlap.QUEUE:
        _drop_waiting(connection, schedule, "the schedule lets no run wait any more")
    is_retimed = (plan.cron, plan.time_zone) != (schedule.cron, schedule.time_zone) or schedule.next_at is None
    if is_retimed and schedule.paused_at is None:
        _pass_over(connection, schedule, "the schedule was changed before it could fire", now)
        schedule.next_at = cron.after(plan.cron, plan.time_zone, now)
    return _set(connection, schedule, {**asdict(plan), "next_at": schedule.next_at, "updated_at": now})


def pause(connection: Connection, schedule: Schedule, now: datetime) -> Schedule:
    """The schedule, which fires no more; what waited for the run before is dropped. `schedule` is held."""
    if schedule.paused_at is not None:
        return schedule
    why = "the schedule was paused before"
    _pass_over(connection, schedule, why, now)
    _drop_waiting(connection, schedule, why)
    return _set(connection, schedule, {"paused_at": now, "next_at": None})


def resume(connection: Connection, schedule: Schedule, now: datetime) -> Schedule:
    """The schedule, which fires again from its next fire time on; nothing is made up for. `schedule` is held."""
    if schedule.paused_at is None:
        return schedule
    next_at = cron.after(schedule.cron, schedule.time_zone, now)
    return _set(connection, schedule, {"paused_at": None, "next_at": next_at})


def remove(connection: Connection, schedule: Schedule) -> None:
    """Deletes the schedule with its history; its jobs stay."""
    connection.execute(delete(Schedule).where(Schedule.id == schedule.id))


def skip(connection: Connection, schedule: Schedule, times: Sequence[datetime], why: str, now: datetime) -> None:
    """Puts fire times on record as skipped, but those that have a run."""
    if times:
        words = {"trigger": Trigger.CLOCK, "outcome": Outcome.SKIPPED, "why": why, "at": now}
        whose = {"schedule_id": schedule.id, "project_id": schedule.project_id}
        connection.execute(_SKIPPED, [{**whose, **words, "fire_at": fires} for fires in times])


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
    while times := timetable.due_times(schedule, now, AT_ONCE):
        skip(connection, schedule, times, why, now)
        schedule.next_at = timetable.following(schedule, times[-1])


def _drop_waiting(connection: Connection, schedule: Schedule, why: str) -> None:
    waiting = update(Run).where(Run.schedule_id == schedule.id, Run.outcome == Outcome.WAITING)
    connection.execute(waiting.values(outcome=Outcome.SKIPPED, why=why))
