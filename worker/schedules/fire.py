"""Firing schedules: each fire time becomes exactly one run, and at most one job, whatever clocks do.

The tick only says that schedules are due; that message may be lost, repeated or late. Whoever gets it takes one
schedule after the other, each in a transaction of its own: its row is locked (rows that others hold are left to
them), a run is made for the fire time (there is one row for each, by its key), then the job, and `next_at` moves on.
So nothing is half done, one schedule's trouble is no other's, and the tick never waits for a lock on a job that a
schedule cancels. When a submission is refused, the run records why, and the schedule goes on.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError

from worker import claims, kinds, log, timeouts
from worker.catalog import Catalog
from worker.claims import NOW, Now
from worker.errors import Conflict, InvalidInput, NoriaError
from worker.jobs import submission
from worker.jobs.submission import Submission
from worker.schedules import clock, plan
from worker.schedules.plan import Missed, Occasion, Outcome, Overlap, Trigger
from worker.settings import Settings
from worker.states import DONE
from worker.tables import Job, Project, Run, Schedule

_AT_ONCE = 50  # schedules that one message from the tick fires; the next message goes on
_WAITING = 10  # runs of a schedule that may wait
_OURS = "a fault of Noria's own; the log says which"

_log = log.get(__name__)


@dataclass(frozen=True)
class FireContext:
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


def is_due(now: Now) -> ColumnElement[bool]:
    """Whether a fire time has come, or the job that a run waits for has ended."""
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
            ctx = FireContext(connection, catalog, settings, columns.pop("moment"))
            fired = _fire(ctx, Schedule.of(columns))
        seen.append(row["id"])
        made += fired
    return made


def run_now(ctx: FireContext, schedule: Schedule, key: str | None) -> Made:
    """A run that a person asks for, of this second; under the same Idempotency-Key the first one.

    `schedule` is locked. Raises Conflict when this second has a run already.
    """
    if key is not None:
        first = select(Run.id).where(Run.schedule_id == schedule.id, Run.key == key)
        if run_id := ctx.connection.execute(first).scalar_one_or_none():
            return Made(run_id, replayed=True)
    made = _run(ctx, schedule, ctx.now.replace(microsecond=0), Trigger.PERSON, key)
    if made is None:
        raise Conflict("run_exists", "there is a run of this second: ask again in a second")
    _keep(ctx, schedule)
    return made


def _is_free() -> ColumnElement[bool]:
    """Whether the job of the schedule's last run is done; a person's review does not keep the next one waiting."""
    # a scalar, which the planner looks up by key: it would read all jobs for an anti-join
    done = select(Job.state.in_(DONE)).where(Job.id == Schedule.job_id).scalar_subquery()
    return func.coalesce(done, True)


def _next(seen: Sequence[uuid.UUID], now: Now) -> Any:
    waits = exists().where(Run.schedule_id == Schedule.id, Run.outcome == Outcome.WAITING)
    return (
        select(*Schedule.__table__.c, claims.moment(now).label("moment"))
        .where(or_(Schedule.next_at <= now, and_(waits, _is_free())), Schedule.id.not_in(seen))
        .order_by(Schedule.next_at)
        .limit(1)
        .with_for_update(skip_locked=True, of=Schedule)
    )


def _fire(ctx: FireContext, schedule: Schedule) -> list[Job]:
    """The jobs of one schedule; none when it failed: the next message tries it again."""
    try:
        with ctx.connection.begin_nested():
            made = [*_go_on(ctx, schedule), *_timed(ctx, schedule)]
            _keep(ctx, schedule)
    except Exception:  # noqa: BLE001 - one schedule's trouble is no other's
        _log.exception("a schedule failed; it is tried again", schedule=str(schedule.id))
        return []
    return [run.job for run in made if run.job]


def _timed(ctx: FireContext, schedule: Schedule) -> list[Made]:
    """The runs of the fire times that have come; many missed ones are recorded in several goes."""
    times = plan.due_times(schedule, ctx.now, plan.AT_ONCE)
    if not times:
        return []
    schedule.next_at = plan.following(schedule, times[-1])
    wanted = _wanted(schedule, times, ctx.now)
    if schedule.next_at is not None and schedule.next_at <= ctx.now:
        wanted = {}  # a later one is the latest; those on time come in the next go
        times = [fires for fires in times if ctx.now - fires > timeouts.MISSED]
        schedule.next_at = plan.following(schedule, times[-1])
    passed = [fires for fires in times if fires not in wanted]
    plan.skip(ctx.connection, schedule, passed, "no clock ran at that time", ctx.now)
    if passed:
        _log.warning("schedule.skipped", schedule=str(schedule.id), missed=len(passed))
    made = [_run(ctx, schedule, fires, trigger, None) for fires, trigger in wanted.items()]
    return [run for run in made if run]


def _wanted(schedule: Schedule, times: Sequence[datetime], now: datetime) -> dict[datetime, Trigger]:
    """Those that are on time; else the latest, where the schedule makes up for what it missed."""
    on_time = {fires: Trigger.CLOCK for fires in times if now - fires <= timeouts.MISSED}
    return on_time or ({times[-1]: Trigger.LATE} if schedule.missed == Missed.RUN_ONCE else {})


def _run(ctx: FireContext, schedule: Schedule, fire_at: datetime, trigger: Trigger, key: str | None) -> Made | None:
    """The run of a fire time, made; None when it has one already. `schedule` is locked; `_keep` it afterwards."""
    taken = upsert(Run).on_conflict_do_nothing().returning(Run.id)
    said = {"fire_at": fire_at, "trigger": trigger, "outcome": Outcome.WAITING, "key": key, "at": ctx.now}
    whose = {"schedule_id": schedule.id, "project_id": schedule.project_id}
    run_id = ctx.connection.execute(taken, {**whose, **said}).scalar_one_or_none()
    if run_id is None:
        return None
    return _record(ctx, schedule, run_id, fire_at, _verdict(ctx, schedule, fire_at, run_id))


def _go_on(ctx: FireContext, schedule: Schedule) -> list[Made]:
    """The first waiting run, submitted, if the job before it has ended."""
    first = (
        select(Run.id, Run.fire_at)
        .where(Run.schedule_id == schedule.id, Run.outcome == Outcome.WAITING)
        .order_by(Run.fire_at)
        .limit(1)
    )
    waited = ctx.connection.execute(first).one_or_none()
    if waited is None or _before(ctx, schedule):
        return []
    return [_record(ctx, schedule, *waited, _submitted(ctx, schedule, waited.fire_at, waited.id))]


def _keep(ctx: FireContext, schedule: Schedule) -> None:
    """Writes where the schedule stands: its next fire time, its last job, and until when that took documents."""
    columns = {"next_at": schedule.next_at, "job_id": schedule.job_id, "since": schedule.since}
    ctx.connection.execute(update(Schedule).where(Schedule.id == schedule.id).values(**columns))


def _record(ctx: FireContext, schedule: Schedule, run_id: uuid.UUID, fire_at: datetime, verdict: Verdict) -> Made:
    columns = {"outcome": verdict.outcome, "why": verdict.why, "job_id": verdict.job.id if verdict.job else None}
    ctx.connection.execute(update(Run).where(Run.id == run_id).values(**columns))
    _log.info(
        "schedule.fired" if verdict.job else f"schedule.{verdict.outcome}",
        schedule=str(schedule.id),
        run=str(run_id),
        fire_at=fire_at.isoformat(),
        job=str(verdict.job.id) if verdict.job else None,
        why=verdict.why,
    )
    return Made(run_id, verdict.job)


def _verdict(ctx: FireContext, schedule: Schedule, fire_at: datetime, run_id: uuid.UUID) -> Verdict:
    before = _before(ctx, schedule)
    ahead = _ahead(ctx, schedule, run_id)
    if schedule.overlap == Overlap.CANCEL and before:
        return _replaced(ctx, schedule, before, _submitted(ctx, schedule, fire_at, run_id))
    if not before and not ahead:
        return _submitted(ctx, schedule, fire_at, run_id)
    why = f"job {before.id} of the run before is {before.state}" if before else "other runs wait"
    if schedule.overlap == Overlap.QUEUE and ahead < _WAITING:
        return Verdict(Outcome.WAITING, why)
    return Verdict(Outcome.SKIPPED, f"{why}, and {ahead} wait already" if ahead else why)


def _before(ctx: FireContext, schedule: Schedule) -> Job | None:
    """The job of the last run that submitted one, while it is not done."""
    statement = select(*Job.__table__.c).where(Job.id == schedule.job_id, Job.state.not_in(DONE))
    row = ctx.connection.execute(statement).mappings().one_or_none() if schedule.job_id else None
    return Job.of(row) if row else None


def _ahead(ctx: FireContext, schedule: Schedule, run_id: uuid.UUID) -> int:
    waiting = (Run.schedule_id == schedule.id, Run.outcome == Outcome.WAITING, Run.id != run_id)
    return int(ctx.connection.execute(select(func.count()).where(*waiting)).scalar_one())


def _submitted(ctx: FireContext, schedule: Schedule, fire_at: datetime, run_id: uuid.UUID) -> Verdict:
    """Submits the job and moves the window on; a refusal leaves the window open."""
    try:
        with ctx.connection.begin_nested():
            occasion = Occasion.of(fire_at, schedule.time_zone, schedule.since, run_id)
            job = _job(ctx, schedule, occasion)
    except NoriaError as error:
        return Verdict(Outcome.REFUSED, str(error))
    except DBAPIError:  # it may be temporary: all of it is tried again
        raise
    except Exception:  # noqa: BLE001 - our own mistake in one kind stops no other schedule
        _log.exception("a schedule's submission failed", schedule=str(schedule.id))
        return Verdict(Outcome.REFUSED, _OURS)
    schedule.job_id, schedule.since = job.id, occasion.until
    warnings = kinds.warnings(ctx.catalog, job.kind, job.model, job.input)
    return Verdict(Outcome.SUBMITTED, "; ".join(warning.message for warning in warnings), job)


def _job(ctx: FireContext, schedule: Schedule, occasion: Occasion) -> Job:
    if found := clock.faults(schedule.cron, schedule.time_zone):
        raise InvalidInput(found)
    filled, found = plan.fill(schedule.template, occasion.values())
    if found:
        raise InvalidInput(found)
    row = ctx.connection.execute(select(*Project.__table__.c).where(Project.id == schedule.project_id))
    project = Project.of(row.mappings().one())
    settings = ctx.settings.bound_to(project.account)
    prepared = submission.prepare(ctx.catalog, settings, Submission(**({"model": None} | filled)), ctx.now)
    _check_room(ctx, schedule)
    prepared = replace(prepared, schedule_id=schedule.id)
    return submission.submit(ctx.connection, project, prepared, None, ctx.now)[0]


def _check_room(ctx: FireContext, schedule: Schedule) -> None:
    most = ctx.settings.max_waiting
    unfinished = select(Job.id).where(Job.project_id == schedule.project_id, Job.finished_at.is_(None)).limit(most)
    if ctx.connection.execute(select(func.count()).select_from(unfinished.subquery())).scalar_one() >= most:
        raise Conflict("too_many_waiting", f"the project has {most} unfinished jobs, as many as it may")


def _replaced(ctx: FireContext, schedule: Schedule, before: Job, verdict: Verdict) -> Verdict:
    """The verdict; if there is a new job, the job before is asked to stop."""
    if verdict.job is None:
        return verdict
    try:
        became = submission.cancel(ctx.connection, schedule.project_id, before.id, ctx.now)[1]
    except NoriaError as error:
        became = str(error)
    why = f"job {before.id} of the run before was asked to stop: {became}"
    return Verdict(verdict.outcome, f"{why}; {verdict.why}" if verdict.why else why, verdict.job)
