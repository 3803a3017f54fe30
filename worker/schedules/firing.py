"""Firing schedules: each fire time becomes exactly one run, and at most one job, whatever clocks do.

The tick only says that schedules are due; that word may be lost, repeated or late. Whoever hears it takes one schedule
after the other, each in a transaction of its own: its row locked (what others hold is left to them), a run for the
fire time (one row for each, by its key), the job, `next_at` moved on. So nothing is half done, one schedule's trouble
is no other's, and the tick never waits for a lock on a job that a schedule cancels.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Engine, and_, exists, func, or_, select

from worker import claims, log, timeouts
from worker.catalog import Catalog
from worker.claims import NOW, Now
from worker.errors import Conflict
from worker.schedules import editing, runs, timetable
from worker.schedules.editing import Missed, Outcome, Trigger
from worker.schedules.runs import Desk, Made
from worker.settings import Settings
from worker.tables import Job, Run, Schedule

_AT_ONCE = 50  # schedules that one word from the tick fires; the next word goes on

_log = log.get(__name__)


def is_due(now: Now) -> ColumnElement[bool]:
    """Whether a fire time has come, or what a run waited for has ended."""
    waits = select(Schedule.id).join(Run, Run.schedule_id == Schedule.id)
    waits = waits.where(Run.outcome == Outcome.WAITING, _is_free())
    return or_(exists().where(Schedule.next_at <= now), waits.exists())


def fire_due(engine: Engine, catalog: Catalog, settings: Settings, now: Now = NOW) -> list[Job]:
    """Fires what is due, up to a bound; the jobs that it submitted."""
    seen: list[uuid.UUID] = []
    made: list[Job] = []
    while len(seen) < _AT_ONCE:
        with engine.begin() as connection:
            row = connection.execute(_next(seen, now)).mappings().one_or_none()
            if row is None:
                break
            columns = dict(row)
            desk = Desk(connection, catalog, settings, columns.pop("moment"))
            fired = _fire(desk, Schedule.of(columns))
        seen.append(row["id"])
        made += fired
    return made


def run_now(desk: Desk, schedule: Schedule, key: str | None) -> Made:
    """A run that a person asks for, of this very second; under the same Idempotency-Key the first one.

    `schedule` is held. Raises Conflict when this second has a run already.
    """
    if key is not None:
        first = select(Run.id).where(Run.schedule_id == schedule.id, Run.key == key)
        if run_id := desk.connection.execute(first).scalar_one_or_none():
            return Made(run_id, replayed=True)
    made = runs.run(desk, schedule, desk.now.replace(microsecond=0), Trigger.PERSON, key)
    if made is None:
        raise Conflict("run_exists", "there is a run of this very second: ask again in a second")
    runs.keep(desk, schedule)
    return made


def _is_free() -> ColumnElement[bool]:
    """Whether the job of the schedule's last run has ended."""
    # a scalar, which the planner looks up by its key: an anti-join would read all jobs for it
    ended = select(Job.finished_at.is_not(None)).where(Job.id == Schedule.job_id).scalar_subquery()
    return func.coalesce(ended, True)


def _next(seen: Sequence[uuid.UUID], now: Now) -> Any:
    waits = exists().where(Run.schedule_id == Schedule.id, Run.outcome == Outcome.WAITING)
    return (
        select(*Schedule.__table__.c, claims.moment(now).label("moment"))
        .where(or_(Schedule.next_at <= now, and_(waits, _is_free())), Schedule.id.not_in(seen))
        .order_by(Schedule.next_at)
        .limit(1)
        .with_for_update(skip_locked=True, of=Schedule)
    )


def _fire(desk: Desk, schedule: Schedule) -> list[Job]:
    """The jobs of one schedule; none when it stumbled, and is left for the next word."""
    try:
        with desk.connection.begin_nested():
            made = [*runs.go_on(desk, schedule), *_timed(desk, schedule)]
            runs.keep(desk, schedule)
    except Exception:  # noqa: BLE001 - one schedule's trouble is no other's
        _log.exception("a schedule stumbled; it is tried again", schedule=str(schedule.id))
        return []
    return [run.job for run in made if run.job]


def _timed(desk: Desk, schedule: Schedule) -> list[Made]:
    """The runs of the fire times that have come; a long row of missed ones is put on record piece by piece."""
    times = timetable.due_times(schedule, desk.now, editing.AT_ONCE)
    if not times:
        return []
    schedule.next_at = timetable.following(schedule, times[-1])
    wanted = _wanted(schedule, times, desk.now)
    if schedule.next_at is not None and schedule.next_at <= desk.now:
        wanted = {}  # a later one is the latest; those on time are among the next piece
        times = [fires for fires in times if desk.now - fires > timeouts.MISSED]
        schedule.next_at = timetable.following(schedule, times[-1])
    passed = [fires for fires in times if fires not in wanted]
    editing.skip(desk.connection, schedule, passed, "no clock ran at that time", desk.now)
    if passed:
        _log.warning("schedule.skipped", schedule=str(schedule.id), missed=len(passed))
    made = [runs.run(desk, schedule, fires, trigger, None) for fires, trigger in wanted.items()]
    return [run for run in made if run]


def _wanted(schedule: Schedule, times: Sequence[datetime], now: datetime) -> dict[datetime, Trigger]:
    """Those that are on time; else the latest, where the schedule makes up for what it missed."""
    on_time = {fires: Trigger.CLOCK for fires in times if now - fires <= timeouts.MISSED}
    return on_time or ({times[-1]: Trigger.LATE} if schedule.missed == Missed.RUN_ONCE else {})
