"""What is read of schedules: their fire times, a page of them, their runs; and how the API shows each.

Every query carries the project, so another project's ids do not exist.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, func, select
from sqlalchemy.dialects.postgresql import JSONB

from worker import catalog, kinds
from worker.errors import Fault, InvalidInput, NotFound
from worker.schedules import cron
from worker.tables import Job, Run, Schedule
from worker.text import moment as written

_SHOWN = 5  # of the next fire times


def one(connection: Connection, project_id: uuid.UUID, schedule_id: uuid.UUID) -> Schedule:
    """The project's schedule; raises NotFound."""
    return _found(connection, _one(project_id, schedule_id), schedule_id)


def held(connection: Connection, project_id: uuid.UUID, schedule_id: uuid.UUID) -> Schedule:
    """The project's schedule, which nobody else fires or changes until the transaction ends; raises NotFound."""
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
    """That run, as `runs` gives them."""
    return connection.execute(_RUNS.where(Run.id == run_id)).one()


def due_times(schedule: Schedule, now: datetime, most: int) -> list[datetime]:
    """The fire times that have come, from `next_at` on, the first `most` of them."""
    times: list[datetime] = []
    fires = schedule.next_at
    while fires is not None and fires <= now and len(times) < most:
        times.append(fires)
        fires = following(schedule, fires)
    return times


def following(schedule: Schedule, moment: datetime) -> datetime | None:
    """The fire time after the moment; None when there is none, or this machine cannot read the zone any more."""
    try:
        return cron.after(schedule.cron, schedule.time_zone, moment)
    except InvalidInput:
        return None


def shown(schedule: Schedule) -> dict[str, Any]:
    """The schedule as the API and the command line show it."""
    path = f"/v1/schedules/{schedule.id}"
    return {
        "id": str(schedule.id),
        "object": "schedule",
        "name": schedule.name,
        "cron": schedule.cron,
        "time_zone": schedule.time_zone,
        "explained": cron.explain(schedule.cron),
        "template": schedule.template,
        "overlap": schedule.overlap,
        "missed": schedule.missed,
        "next": [written(fires) for fires in _upcoming(schedule)],
        "paused_at": written(schedule.paused_at),
        "since": written(schedule.since),
        "job_id": str(schedule.job_id) if schedule.job_id else None,
        "created_at": written(schedule.created_at),
        "updated_at": written(schedule.updated_at),
        "warnings": [asdict(warning) for warning in _warnings(schedule)],
        "urls": {"self": path, "runs": f"{path}/runs"},
    }


def _warnings(schedule: Schedule) -> list[Fault]:
    """What is taken and hardly meant: a zone with its sign inverted, a model that others report as retired."""
    template, zone = schedule.template, cron.zone_warning(schedule.time_zone)
    of_template = kinds.warnings(catalog.load(), template["kind"], template.get("model"), template.get("input") or {})
    found = [replace(warning, pointer=f"/template{warning.pointer}") for warning in of_template]
    return ([Fault("/time_zone", "inverted_zone", zone)] if zone else []) + found


def run_shown(run: Any) -> dict[str, Any]:
    """A run, as `runs` gives it, as the API and the command line show it."""
    return {
        "id": str(run.id),
        "object": "run",
        "schedule_id": str(run.schedule_id),
        "fire_at": written(run.fire_at),
        "trigger": run.trigger,
        "outcome": run.outcome,
        "why": run.why,
        "job_id": str(run.job_id) if run.job_id else None,
        "job_state": run.job_state,
        "at": written(run.at),
    }


_SHORT = {"template": func.shortened(Schedule.template, type_=JSONB).label("template")}
_LISTED = [_SHORT.get(column.name, column) for column in Schedule.__table__.c]
_RUNS = select(*Run.__table__.c, Job.state.label("job_state")).outerjoin(Job, Job.id == Run.job_id)


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
