"""One run of a schedule: what becomes of a fire time, and the job that it submits.

A run's row is made first, and there is one for each fire time; who finds it made does nothing. What a submission is
refused for is on record with the run, and the schedule goes on.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError

from worker import kinds, log
from worker.catalog import Catalog
from worker.errors import Conflict, InvalidInput, NoriaError
from worker.jobs import submission
from worker.jobs.submission import Submission
from worker.schedules import cron, templates
from worker.schedules.editing import Outcome, Overlap, Trigger
from worker.schedules.templates import Occasion
from worker.settings import Settings
from worker.tables import Job, Project, Run, Schedule

_WAITING = 10  # runs of a schedule that may wait
_OURS = "a fault of Noria's own; the log says which"

_log = log.get(__name__)


@dataclass(frozen=True)
class Desk:
    """What a schedule is fired with: a transaction, the catalog, the settings, and Postgres's time."""

    connection: Connection
    catalog: Catalog
    settings: Settings
    now: datetime


@dataclass(frozen=True)
class Verdict:
    """What became of a run, why, and the job that it submitted."""

    outcome: Outcome
    why: str = ""
    job: Job | None = None


@dataclass(frozen=True)
class Made:
    """A run that a person asked for: its id, its job where it submitted one now, whether it was there before."""

    run: uuid.UUID
    job: Job | None = None
    replayed: bool = False


def run(desk: Desk, schedule: Schedule, fire_at: datetime, trigger: Trigger, key: str | None) -> Made | None:
    """The run of a fire time, made and seen to; None when it has one already. `schedule` is held; `keep` it after."""
    taken = upsert(Run).on_conflict_do_nothing().returning(Run.id)
    said = {"fire_at": fire_at, "trigger": trigger, "outcome": Outcome.WAITING, "key": key, "at": desk.now}
    whose = {"schedule_id": schedule.id, "project_id": schedule.project_id}
    run_id = desk.connection.execute(taken, {**whose, **said}).scalar_one_or_none()
    if run_id is None:
        return None
    return _record(desk, schedule, run_id, fire_at, _verdict(desk, schedule, fire_at, run_id))


def go_on(desk: Desk, schedule: Schedule) -> list[Made]:
    """The first run that waited, submitted, where the job before it has ended."""
    first = (
        select(Run.id, Run.fire_at)
        .where(Run.schedule_id == schedule.id, Run.outcome == Outcome.WAITING)
        .order_by(Run.fire_at)
        .limit(1)
    )
    waited = desk.connection.execute(first).one_or_none()
    if waited is None or _before(desk, schedule):
        return []
    return [_record(desk, schedule, *waited, _submitted(desk, schedule, waited.fire_at, waited.id))]


def keep(desk: Desk, schedule: Schedule) -> None:
    """Writes where the schedule stands: its next fire time, its last job, and until when that took documents."""
    columns = {"next_at": schedule.next_at, "job_id": schedule.job_id, "since": schedule.since}
    desk.connection.execute(update(Schedule).where(Schedule.id == schedule.id).values(**columns))


def _record(desk: Desk, schedule: Schedule, run_id: uuid.UUID, fire_at: datetime, verdict: Verdict) -> Made:
    columns = {"outcome": verdict.outcome, "why": verdict.why, "job_id": verdict.job.id if verdict.job else None}
    desk.connection.execute(update(Run).where(Run.id == run_id).values(**columns))
    _log.info(
        "schedule.fired" if verdict.job else f"schedule.{verdict.outcome}",
        schedule=str(schedule.id),
        run=str(run_id),
        fire_at=fire_at.isoformat(),
        job=str(verdict.job.id) if verdict.job else None,
        why=verdict.why,
    )
    return Made(run_id, verdict.job)


def _verdict(desk: Desk, schedule: Schedule, fire_at: datetime, run_id: uuid.UUID) -> Verdict:
    before = _before(desk, schedule)
    ahead = _ahead(desk, schedule, run_id)
    if schedule.overlap == Overlap.CANCEL and before:
        return _replaced(desk, schedule, before, _submitted(desk, schedule, fire_at, run_id))
    if not before and not ahead:
        return _submitted(desk, schedule, fire_at, run_id)
    why = f"job {before.id} of the run before is {before.state}" if before else "other runs wait"
    if schedule.overlap == Overlap.QUEUE and ahead < _WAITING:
        return Verdict(Outcome.WAITING, why)
    return Verdict(Outcome.SKIPPED, f"{why}, and {ahead} wait already" if ahead else why)


def _before(desk: Desk, schedule: Schedule) -> Job | None:
    """The job of the last run that submitted one, while it has not ended."""
    statement = select(*Job.__table__.c).where(Job.id == schedule.job_id, Job.finished_at.is_(None))
    row = desk.connection.execute(statement).mappings().one_or_none() if schedule.job_id else None
    return Job.of(row) if row else None


def _ahead(desk: Desk, schedule: Schedule, run_id: uuid.UUID) -> int:
    waiting = (Run.schedule_id == schedule.id, Run.outcome == Outcome.WAITING, Run.id != run_id)
    return int(desk.connection.execute(select(func.count()).where(*waiting)).scalar_one())


def _submitted(desk: Desk, schedule: Schedule, fire_at: datetime, run_id: uuid.UUID) -> Verdict:
    """A job submitted, and the window of what it is about closed; or refused, which leaves the window open."""
    try:
        with desk.connection.begin_nested():
            occasion = Occasion.of(fire_at, schedule.time_zone, schedule.since, run_id)
            job = _job(desk, schedule, occasion)
    except NoriaError as error:
        return Verdict(Outcome.REFUSED, str(error))
    except DBAPIError:  # it may be the moment's: all of it is tried again
        raise
    except Exception:  # noqa: BLE001 - a mistake of ours in one kind stops no other schedule
        _log.exception("a schedule's submission failed", schedule=str(schedule.id))
        return Verdict(Outcome.REFUSED, _OURS)
    schedule.job_id, schedule.since = job.id, occasion.until
    warnings = kinds.warnings(desk.catalog, job.kind, job.model, job.input)
    return Verdict(Outcome.SUBMITTED, "; ".join(warning.message for warning in warnings), job)


def _job(desk: Desk, schedule: Schedule, occasion: Occasion) -> Job:
    if found := cron.faults(schedule.cron, schedule.time_zone):
        raise InvalidInput(found)
    filled, found = templates.fill(schedule.template, occasion.values())
    if found:
        raise InvalidInput(found)
    prepared = submission.prepare(desk.catalog, desk.settings, Submission(**({"model": None} | filled)), desk.now)
    _check_room(desk, schedule)
    row = desk.connection.execute(select(*Project.__table__.c).where(Project.id == schedule.project_id))
    return submission.submit(desk.connection, Project.of(row.mappings().one()), prepared, None, desk.now)[0]


def _check_room(desk: Desk, schedule: Schedule) -> None:
    most = desk.settings.max_waiting
    unfinished = select(Job.id).where(Job.project_id == schedule.project_id, Job.finished_at.is_(None)).limit(most)
    if desk.connection.execute(select(func.count()).select_from(unfinished.subquery())).scalar_one() >= most:
        raise Conflict("too_many_waiting", f"the project has {most} unfinished jobs, as many as it may")


def _replaced(desk: Desk, schedule: Schedule, before: Job, verdict: Verdict) -> Verdict:
    """The verdict, and the job before asked to stop, if there is another now."""
    if verdict.job is None:
        return verdict
    try:
        became = submission.cancel(desk.connection, schedule.project_id, before.id, desk.now)[1]
    except NoriaError as error:
        became = str(error)
    why = f"job {before.id} of the run before was asked to stop: {became}"
    return Verdict(verdict.outcome, f"{why}; {verdict.why}" if verdict.why else why, verdict.job)
